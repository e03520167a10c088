//! The `webhook` commands install, correct and test the repository's webhook, and redeliver failed
//! deliveries.

use serde_json::json;
use video_ingest::cli::webhook;
use video_ingest::clock::Clock;
use video_ingest::services::github::{Github, failed_guids};

use crate::scenario;
use crate::support::scenario::{REPOSITORY, SECRET, Scenario, Video};

const TOKEN: &str = "a-token-for-hooks";

fn github(t: &Scenario) -> Github {
    let token = Some(TOKEN.into());
    Github::new(
        &t.github.url(),
        token,
        REPOSITORY.parse().unwrap(),
        None,
        "videos",
        Clock::default(),
    )
    .unwrap()
}

fn receiver(t: &Scenario) -> reqwest::Url {
    webhook::receiver(&t.url).unwrap()
}

scenario! {
    an_installed_webhook_delivers_pushes(t) {
        let github = github(t);
        let (hook, is_new) = webhook::save(&github, &receiver(t), &SECRET.into()).await.unwrap();
        assert!(is_new);
        assert_eq!(hook.events, ["push"]);
        assert!(hook.config.is_signed() && hook.config.checks_certificates());
        let pong = webhook::ping(&github, &hook).await.unwrap().unwrap();
        assert_eq!((pong.status.as_str(), pong.status_code), ("OK", 200));

        let video = Video::good();
        t.row(&video).await;
        let before = t.github.head();
        let after = t.commit(&video);
        t.github.deliver(hook.id, &t.github.push(before, after)).await;
        t.work().await;
        t.expect_ready(&video).await;
    }

    installing_again_corrects_the_webhook(t) {
        let github = github(t);
        let url = receiver(t);
        let form = json!({"active": false, "events": ["*"], "config": {"url": url, "insecure_ssl": "1"}});
        let id = t.github.add_hook(&form);
        let other = t.github.add_hook(&json!({"config": {"url": "https://ci.example.org/"}}));
        let (hook, is_new) = webhook::save(&github, &url, &SECRET.into()).await.unwrap();
        assert_eq!((hook.id, is_new), (id, false));
        assert!(hook.active && hook.config.is_signed() && hook.config.checks_certificates());
        assert_eq!((hook.events, hook.config.content_type.as_str()), (vec!["push".to_owned()], "json"));
        let all = github.hooks().await.unwrap().unwrap();
        assert_eq!(all.len(), 2, "{all:?}");
        assert!(all.iter().any(|hook| hook.id == other && hook.config.url == "https://ci.example.org/"));
    }

    a_moved_server_updates_its_webhook(t) {
        let old = "https://old.example.org/webhooks/github";
        let id = t.github.add_hook(&json!({"config": {"url": old}}));
        let (hook, is_new) = webhook::save(&github(t), &receiver(t), &SECRET.into()).await.unwrap();
        assert_eq!((hook.id, is_new, hook.config.url), (id, false, receiver(t).to_string()));
    }

    failed_deliveries_are_redelivered(t) {
        let github = github(t);
        let (hook, _) = webhook::save(&github, &receiver(t), &SECRET.into()).await.unwrap();
        let (lost, found) = (Video::good(), Video::good());
        for video in [&lost, &found] {
            t.row(video).await;
            let before = t.github.head();
            let push = t.github.push(before, t.commit(video));
            t.github.record(hook.id, &push, "timed out", 0);
            if video.key == found.key {
                t.github.deliver(hook.id, &push).await;
            }
        }
        let redelivered = webhook::redeliver_failed(&github, &hook).await.unwrap();
        assert_eq!(redelivered.len(), 1);
        t.work().await;
        t.expect_ready(&lost).await;
        t.expect_ready(&found).await;
        let deliveries = github.deliveries(hook.id).await.unwrap();
        assert_eq!(failed_guids(&deliveries), [""; 0]);
    }

    one_delivery_is_redelivered(t) {
        let github = github(t);
        let (hook, _) = webhook::save(&github, &receiver(t), &SECRET.into()).await.unwrap();
        let video = Video::good();
        t.row(&video).await;
        let before = t.github.head();
        let push = t.github.push(before, t.commit(&video));
        t.github.record(hook.id, &push, "timed out", 0);
        let guid = github.deliveries(hook.id).await.unwrap()[0].guid.clone();
        webhook::redeliver_one(&github, &hook, &guid).await.unwrap();
        t.work().await;
        t.expect_ready(&video).await;
        let unknown = webhook::redeliver_one(&github, &hook, "an-older-one").await.unwrap_err();
        assert!(unknown.to_string().contains("video-ingest reconcile"), "{unknown}");
    }

    three_days_of_deliveries_are_read_page_by_page(t) {
        let hook = t.github.add_hook(&json!({"config": {"url": receiver(t)}}));
        for _ in 0..250 {
            let push = t.github.push(t.github.head(), t.github.head());
            t.github.record(hook, &push, "timed out", 0);
        }
        let deliveries = github(t).deliveries(hook).await.unwrap();
        assert_eq!(failed_guids(&deliveries).len(), 250);
    }

    missing_permissions_are_reported(t) {
        let anonymous = Github::new(&t.github.url(), None, REPOSITORY.parse().unwrap(), None, "videos", Clock::default()).unwrap();
        let refusal = webhook::save(&anonymous, &receiver(t), &SECRET.into()).await.unwrap_err();
        assert!(refusal.to_string().contains("Webhooks: read and write"), "{refusal}");
    }
}

/// Runs a `webhook` command with no settings except the repository and a token.
async fn webhook(t: &Scenario, args: &[&str]) -> (Option<i32>, String) {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_video-ingest"))
        .arg("webhook")
        .args(args)
        .env_clear()
        .env("GITHUB_API_URL", t.github.url())
        .env("GITHUB_REPOSITORY", REPOSITORY)
        .env("GITHUB_TOKEN", TOKEN)
        .current_dir(t.data_dir())
        .output()
        .await
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

scenario! {
    a_generated_secret_is_shown_once_and_never_replaced(t) {
        let install = ["install", "--url", t.url.as_str()];
        let (code, said) = webhook(t, &install).await;
        let secret = said.lines().find_map(|line| line.strip_prefix("GITHUB_WEBHOOK_SECRET="));
        assert_eq!((code, secret.map(str::len)), (Some(0), Some(64)), "{said}");
        let (code, said) = webhook(t, &install).await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("has a secret") && !said.contains('='), "{said}");
        let (code, said) = webhook(t, &["status"]).await;
        assert_eq!(code, Some(2), "no secret is a setting that is missing: {said}");
    }
}

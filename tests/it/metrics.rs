//! The metrics in the alert rules and the dashboard exist and are counted, and their queries are valid.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use crate::support::scenario::{Backend, Scenario, TRUNCATED, Video};

const ALERTS: &str = "deploy/prometheus/alerts.yml";
const DASHBOARD: &str = include_str!("../../deploy/grafana/dashboard.json");

/// Every metric name in a text.
fn names(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("video_ingest_"))
        .map(str::to_owned)
        .collect()
}

/// The metrics of a server after a ready video, a failed video, a rate limit header and a sweep.
async fn scraped() -> String {
    let t = Scenario::begin(Backend::Embedded).await;
    let (good, bad) = (Video::good(), Video::with(TRUNCATED));
    t.row(&good).await;
    t.row(&bad).await;
    t.push(&good).await;
    t.push(&bad).await;
    t.work().await;
    t.github.quota(4000, 2_000_000_000);
    t.ask("/reconcile?wait=0").await;
    let scraped = t.get("/metrics").await;
    assert_eq!(
        scraped.headers["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let text = scraped.json.as_str().unwrap().to_owned();
    assert!(!text.contains(&good.id()), "no ids in labels: {text}");
    t.finish().await;
    text
}

#[tokio::test]
async fn metrics_are_not_served_through_a_proxy() {
    let t = Scenario::begin(Backend::Embedded).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (name, value) in [
        ("x-forwarded-for", "203.0.113.7"),
        ("x-forwarded-for", ""),
        ("x-forwarded-proto", "https"),
        ("forwarded", "for=203.0.113.7"),
    ] {
        let url = format!("{}/metrics", t.url);
        let request = client.get(url).header(name, value);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 404, "{name}: {value}");
        let body = response.text().await.unwrap();
        assert!(!body.contains("video_ingest_"), "{body}");
    }
    assert_eq!(t.get("/metrics").await.status, 200);
    t.finish().await;
}

#[tokio::test]
async fn every_metric_in_alerts_and_dashboard_exists() {
    let measured = names(&scraped().await);
    let alerts = std::fs::read_to_string(ALERTS).unwrap();
    let used: BTreeSet<_> = names(&alerts).union(&names(DASHBOARD)).cloned().collect();
    let missing: Vec<_> = used.difference(&measured).collect();
    assert!(missing.is_empty(), "{missing:?} of {measured:#?}");
    let is_unused = |name: &String| {
        let base = ["_bucket", "_sum", "_count"];
        let base = base.iter().find_map(|suffix| name.strip_suffix(suffix));
        !used.contains(name) && !used.contains(&format!("{}_bucket", base.unwrap_or(name)))
    };
    let unused: Vec<_> = measured.iter().filter(|name| is_unused(name)).collect();
    assert_eq!(
        unused,
        ["video_ingest_github_rate_limit_reset_timestamp_seconds"]
    );
}

#[tokio::test]
async fn events_are_counted() {
    let text = scraped().await;
    for series in [
        "video_ingest_deliveries_total{result=\"accepted\"}",
        "video_ingest_attempts_total{outcome=\"failed\",code=\"truncated\"}",
        "video_ingest_attempts_total{outcome=\"ready\",code=\"\"}",
        "video_ingest_step_seconds_count{step=\"fetched\"}",
        "video_ingest_push_to_ready_seconds_count",
        "video_ingest_stored_bytes_total",
        "video_ingest_sweeps_total{result=\"done\"}",
    ] {
        let line = text.lines().find(|line| line.starts_with(series));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        assert!(
            value.is_some_and(|n| n >= 1.0),
            "{series}: {line:?} in {text}"
        );
    }
}

#[test]
fn the_alert_rules_are_valid() {
    let checked = Command::new("promtool")
        .args(["check", "rules", ALERTS])
        .output()
        .expect("promtool is missing: apt-get install prometheus");
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{said}");
}

#[test]
fn the_dashboard_queries_are_valid() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries: Vec<_> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap())
        .map(|target| target["expr"].as_str().unwrap())
        .map(|expr| {
            expr.replace("$__rate_interval", "5m")
                .replace("$__range", "24h")
        })
        .collect();
    assert!(queries.len() >= panels.len());
    let dir = tempfile::tempdir().unwrap();
    let rules: Vec<_> = queries
        .iter()
        .enumerate()
        .map(|(n, expr)| serde_json::json!({"record": format!("panel:{n}"), "expr": expr}))
        .collect();
    // YAML is a superset of JSON; a query that is a valid rule is a valid query.
    let rules = serde_json::json!({"groups": [{"name": "dashboard", "rules": rules}]});
    let path = dir.path().join("rules.yml");
    std::fs::write(&path, rules.to_string()).unwrap();
    let checked = Command::new("promtool")
        .args(["check", "rules"])
        .arg(path)
        .output()
        .expect("promtool is missing: apt-get install prometheus");
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{said}");
}

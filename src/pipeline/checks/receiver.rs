//! The public address of the server: whether GitHub's deliveries to it would reach a server with our secret.

use reqwest::Url;

use super::Report;
use crate::config::{Config, reachable};
use crate::format::Unreachable;
use crate::services::receiver::{self, Reached};

pub(super) async fn examine(config: &Config, url: Option<&Url>) -> Report {
    let mut report = Report::default();
    let Some(url) = url else {
        return report;
    };
    let id = "hook.reach";
    let reached = match receiver::ask(url, &config.webhook_secrets[0]).await {
        Ok(Reached::Ours) => {
            report.ok(
                id,
                format!("{url} reaches a server with this webhook secret."),
            );
            return report;
        }
        Ok(reached) => reached,
        Err(error) => {
            report.fail(id, format!("{error:#}."));
            return report;
        }
    };
    let local = reachable(config.listen);
    let behind = if receiver::is_listening(local).await {
        format!(
            "a server is running on this machine at {local}, so configure the proxy to forward requests to it"
        )
    } else {
        format!(
            "no server is running on this machine at {local}, so start one with `video-ingest serve`"
        )
    };
    let text = match reached {
        Reached::Older => {
            let text = format!(
                "The server at {url} runs an older version, which cannot prove that it has this webhook secret. Install this version there."
            );
            report.warn(id, text);
            return report;
        }
        Reached::Ours | Reached::OtherSecret => format!(
            "{url} reaches a server with another webhook secret. Set GITHUB_WEBHOOK_SECRET to the same value here and on that server and restart it, or correct --url."
        ),
        Reached::ProxyAlone(status) => format!(
            "The proxy at {url} returned {status} because it does not reach the server; {behind}."
        ),
        Reached::Redirect(Some(target)) => format!(
            "{url} redirects to {target}, and GitHub does not follow redirects. Run `video-ingest webhook install --url {target}` if that is this server."
        ),
        Reached::Redirect(None) => format!(
            "{url} returned a redirect, which GitHub does not follow. Use the address to which it redirects as --url."
        ),
        Reached::Other(404) => format!(
            "{url} reaches another server, or a proxy that does not forward this path (status 404). Correct --url, or forward /webhooks/github; {behind}."
        ),
        Reached::Other(status) => format!(
            "{url} reaches another program (status {status}). Correct --url, or the address to which the proxy forwards requests; {behind}."
        ),
        Reached::Nothing(reason) => {
            let action = match reason {
                Unreachable::Name => "Create a DNS record for it, or correct --url".to_owned(),
                Unreachable::Refused => format!("Start the proxy, or correct --url; {behind}"),
                Unreachable::NoRoute | Unreachable::TimedOut | Unreachable::Lost => {
                    format!("Check the firewall and the proxy; {behind}")
                }
                Unreachable::Authority => {
                    "Install a certificate that GitHub trusts, with its intermediate certificates: one from a public certificate authority such as Let's Encrypt".to_owned()
                }
                Unreachable::OtherHost | Unreachable::Expired | Unreachable::Certificate => {
                    "Install a valid certificate for this host name on the proxy".to_owned()
                }
                Unreachable::NoTls => {
                    "Enable TLS on the proxy, or correct the port in --url".to_owned()
                }
            };
            format!("No server was reached at {url}: {reason}. {action}.")
        }
    };
    report.fail(id, text);
    report
}

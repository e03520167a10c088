//! `video-ingest webhook deliveries`: the deliveries that a running server has received or refused.

use std::io::{IsTerminal as _, stdout};
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, value_parser};
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, url_flag};
use super::manual::{CLIENT_HELP, with_examples};
use super::{json_flag, print, print_json};
use crate::format::{self, Row, plain};

/// Default of `--limit`.
const LIMIT_DEFAULT: &str = "50";

/// The command line of `webhook deliveries`.
pub(super) fn command() -> Command {
    let command = Command::new("deliveries")
        .about("List the deliveries that a running server has received or refused, newest first")
        .after_help(format!(
            "Refused and ignored deliveries are kept in memory, without their content, until the server restarts.\n{CLIENT_HELP}"
        ))
        .args([
            Arg::new("guid")
                .value_name("GUID")
                .help("Show only this delivery, with its videos"),
            Arg::new("limit")
                .long("limit")
                .value_name("N")
                .default_value(LIMIT_DEFAULT)
                .value_parser(value_parser!(u32).range(1..))
                .conflicts_with("guid")
                .help("Maximum number of accepted deliveries to list"),
            url_flag(),
            json_flag(),
        ]);
    with_examples(
        command,
        &[
            (
                "What arrived, and what was refused and why?",
                "video-ingest webhook deliveries",
            ),
            (
                "One delivery, by the GUID that GitHub shows",
                "video-ingest webhook deliveries 72d3162e-cc78-11e3-81ab-4c9367dc0958",
            ),
        ],
    )
}

/// A recorded delivery.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Delivery {
    delivery: String,
    received_at: String,
    after: String,
    status: String,
    scan: bool,
    videos: Vec<Value>,
    ignored: Vec<Value>,
    redeliveries: u64,
}

/// A kind of deliveries that were not recorded.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Refused {
    status: String,
    reason: String,
    text: String,
    at: String,
    count: u64,
}

/// Prints the deliveries.
pub(super) async fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let client = Client::from_flags(matches)?;
    let guid = matches.get_one::<String>("guid");
    let response = match guid {
        Some(guid) => {
            let guid: String = form_urlencoded::byte_serialize(guid.as_bytes()).collect();
            client.get(&format!("/api/deliveries/{guid}"), &[]).await?
        }
        None => {
            let limit = matches.get_one::<u32>("limit").map_or(0, |n| *n as usize);
            list(&client, limit).await?
        }
    };
    if matches.get_flag("json") {
        print_json(&response)?;
    } else if guid.is_some() {
        print(&shown(&serde_json::from_value(response)?))?;
    } else {
        let deliveries: Vec<Delivery> = serde_json::from_value(response["deliveries"].clone())?;
        let refused: Option<Vec<Refused>> = serde_json::from_value(response["refused"].clone())?;
        let lines = merged(&deliveries, &refused.unwrap_or_default());
        print(&listed(&lines, stdout().is_terminal()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads pages until there are enough deliveries.
async fn list(client: &Client, limit: usize) -> anyhow::Result<Value> {
    let (mut all, mut refused, mut query) = (Vec::new(), Value::Null, Vec::new());
    loop {
        let mut page = client.get("/api/deliveries", &query).await?;
        if refused.is_null() {
            refused = page["refused"].take();
        }
        let items = page["deliveries"].as_array().cloned().unwrap_or_default();
        let is_last = items.is_empty();
        all.extend(items);
        let next = page["next"].take();
        if is_last || next.is_null() || all.len() >= limit {
            all.truncate(limit);
            return Ok(json!({"deliveries": all, "refused": refused, "next": next}));
        }
        query = vec![("cursor", next.as_str().unwrap_or_default().to_owned())];
    }
}

/// A line of the list.
struct Line {
    at: String,
    status: String,
    guid: String,
    details: String,
}

/// Received and refused deliveries, newest first.
fn merged(deliveries: &[Delivery], refused: &[Refused]) -> Vec<Line> {
    let received = deliveries.iter().map(|delivery| Line {
        at: delivery.received_at.clone(),
        status: delivery.status.clone(),
        guid: delivery.delivery.clone(),
        details: about(delivery),
    });
    let refused = refused.iter().map(|refused| Line {
        at: refused.at.clone(),
        status: refused.status.clone(),
        guid: String::new(),
        details: format!("{}× {}: {}", refused.count, refused.reason, refused.text),
    });
    let mut lines: Vec<Line> = received.chain(refused).collect();
    // RFC 3339 times in UTC with different numbers of decimals: compared without the `Z`.
    lines.sort_by(|a, b| b.at.trim_end_matches('Z').cmp(a.at.trim_end_matches('Z')));
    lines
}

fn about(delivery: &Delivery) -> String {
    let mut parts = Vec::new();
    if delivery.scan {
        parts.push("the whole folder was scanned".to_owned());
    }
    for (count, what) in [
        (delivery.videos.len() as u64, "video(s)"),
        (delivery.ignored.len() as u64, "ignored file(s)"),
        (delivery.redeliveries, "redeliveries"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    parts.join(", ")
}

fn listed(lines: &[Line], is_terminal: bool) -> String {
    let heads = ["RECEIVED", "STATUS", "GUID", "DETAILS"];
    let cells = |line: &Line| {
        let Line {
            at,
            status,
            guid,
            details,
        } = line;
        [at, status, guid, details].map(|cell| plain(cell)).to_vec()
    };
    if !is_terminal {
        return format::lines(&heads, &lines.iter().map(cells).collect::<Vec<_>>());
    }
    if lines.is_empty() {
        return "No deliveries. To check the webhook, run `video-ingest webhook status`.\n"
            .to_owned();
    }
    let row = |line: &Line| {
        let mut cells = cells(line);
        let details = cells.pop();
        Row {
            cells,
            notes: details
                .into_iter()
                .filter(|text| !text.is_empty())
                .collect(),
        }
    };
    format::table(&heads[..3], &lines.iter().map(row).collect::<Vec<_>>())
}

/// One delivery with all its videos.
fn shown(delivery: &Delivery) -> String {
    let mut text = format!(
        "{}  {}\nreceived  {}\ncommit    {}\n",
        plain(&delivery.delivery),
        plain(&delivery.status),
        plain(&delivery.received_at),
        plain(&delivery.after)
    );
    if delivery.scan {
        text += "The whole folder was scanned.\n";
    }
    let field = |value: &Value, name: &str| plain(value[name].as_str().unwrap_or_default());
    for video in &delivery.videos {
        let state = field(video, "state");
        text += format!("  {}  {state}", field(video, "video_id")).trim_end();
        text.push('\n');
    }
    for file in &delivery.ignored {
        text += &format!(
            "  {} was ignored: {}\n",
            field(file, "path"),
            field(file, "reason")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_and_received_deliveries_are_one_list() {
        let delivery = Delivery {
            delivery: "guid".to_owned(),
            received_at: "2026-01-28T12:00:00.5Z".to_owned(),
            status: "accepted".to_owned(),
            videos: vec![Value::Null],
            ..Delivery::default()
        };
        let refused = Refused {
            status: "refused".to_owned(),
            reason: "bad_signature".to_owned(),
            text: "The secret differs.".to_owned(),
            at: "2026-01-28T12:00:00Z".to_owned(),
            count: 3,
        };
        assert_eq!(
            listed(&merged(&[delivery], &[refused]), false),
            "RECEIVED                STATUS    GUID  DETAILS\n\
             2026-01-28T12:00:00.5Z  accepted  guid  1 video(s)\n\
             2026-01-28T12:00:00Z    refused   -     3× bad_signature: The secret differs.\n"
        );
    }
}

//! The JSON file of a video. The ids are required and must match; all other fields are optional.

use std::collections::HashMap;

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::failure::{Code, Failure};
use super::generation::conversation_id;
use super::ids::VideoKey;
use super::mp4::{Probe, grouped};

/// The largest accepted JSON, in bytes.
pub const METADATA_BYTES_MAX: usize = 64 * 1024;

/// The longest accepted value of a field, in bytes. All known values are shorter.
const FIELD_BYTES_MAX: usize = 100;

/// The accepted difference between `duration_sec` and the duration of the MP4, in milliseconds.
const DURATION_TOLERANCE_MS: f64 = 500.0;

/// The agent's description of the video. Where it differs from the MP4, the MP4 takes precedence.
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    /// The video.
    pub key: VideoKey,
    /// The time when the video was rendered, unchanged RFC 3339.
    pub generated_at: Option<String>,
    /// Duration, in seconds.
    pub duration_sec: Option<f64>,
    /// The container format, such as `mp4`.
    pub format: Option<String>,
    /// Width and height, in pixels.
    pub resolution: Option<(u32, u32)>,
    /// Size of the MP4, in bytes.
    pub file_size: Option<u64>,
    /// The id of the OpenHands conversation: a UUID or 32 hexadecimal digits.
    pub conversation_id: Option<String>,
    /// The optional fields whose value is invalid.
    ignored: Vec<&'static str>,
}

impl Metadata {
    /// Parses the JSON file of the video `key`. The last one of repeated fields counts, as in JavaScript.
    /// `NaN` and infinite numbers, which Python writes by default, make only their own field invalid.
    ///
    /// # Errors
    /// `bad_metadata` if it is not a JSON object with both ids, `metadata_mismatch` if the ids differ from `key`.
    pub fn parse(bytes: &[u8], key: &VideoKey) -> Result<Self, Failure> {
        if bytes.len() > METADATA_BYTES_MAX {
            return Err(bad(format!(
                "it is {} bytes, but the limit is {} bytes",
                grouped(bytes.len() as u64),
                grouped(METADATA_BYTES_MAX as u64)
            )));
        }
        // Some Windows editors write a byte order mark.
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let fields = fields(&blank_non_numbers(text))?;
        identity(&fields, "lesson_id", key.lesson_id)?;
        identity(&fields, "video_id", key.video_id)?;

        let mut reader = Lenient {
            fields,
            ignored: Vec::new(),
        };
        Ok(Self {
            key: *key,
            generated_at: reader.take("generated_at", |value| text_if(value, is_rfc3339)),
            duration_sec: reader.take("duration_sec", |value| {
                value.as_f64().filter(|seconds| *seconds >= 0.0)
            }),
            format: reader.take("format", |value| text_if(value, |_| true)),
            resolution: reader.take("resolution", parse_resolution),
            file_size: reader.take("file_size", Value::as_u64),
            conversation_id: reader.take("conversation_id", |value| {
                text_if(value, |text| conversation_id(text).is_some())
            }),
            ignored: reader.ignored,
        })
    }

    /// Invalid fields, and differences from the MP4, which has `size_bytes` bytes. Sentences for people.
    pub fn warnings(&self, probe: &Probe, size_bytes: u64) -> Vec<String> {
        let mut warnings: Vec<String> = self
            .ignored
            .iter()
            .map(|field| format!("The {field} field in the JSON file is invalid and was ignored."))
            .collect();
        if let Some(seconds) = self.duration_sec
            && (seconds * 1000.0 - probe.duration_ms as f64).abs() > DURATION_TOLERANCE_MS
        {
            let actual = probe.duration_ms as f64 / 1000.0;
            let (stated, actual) = (format!("{seconds} s"), format!("{actual} s"));
            warnings.push(difference("duration", &stated, &actual));
        }
        let actual = (probe.width, probe.height);
        if let Some(stated) = self.resolution.filter(|stated| *stated != actual) {
            warnings.push(difference("resolution", &by(stated), &by(actual)));
        }
        if let Some(stated) = self.file_size.filter(|stated| *stated != size_bytes) {
            let bytes = |size| format!("{} bytes", grouped(size));
            warnings.push(difference("size", &bytes(stated), &bytes(size_bytes)));
        }
        if let Some(stated) = &self.format
            && !stated.eq_ignore_ascii_case("mp4")
        {
            warnings.push(difference("format", &format!("{stated:?}"), "mp4"));
        }
        warnings
    }

    /// The allow-listed fields, for the page and the API. Other fields may contain tokens.
    pub fn public(&self) -> Value {
        let mut public = json!({"lesson_id": self.key.lesson_id, "video_id": self.key.video_id});
        let optional = [
            ("generated_at", self.generated_at.clone().map(Value::from)),
            ("duration_sec", self.duration_sec.map(Value::from)),
            ("format", self.format.clone().map(Value::from)),
            (
                "resolution",
                self.resolution.map(|pixels| by(pixels).into()),
            ),
            ("file_size", self.file_size.map(Value::from)),
            (
                "conversation_id",
                self.conversation_id.clone().map(Value::from),
            ),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                public[name] = value;
            }
        }
        public
    }
}

/// Reads optional fields and collects the names of invalid ones.
struct Lenient {
    fields: Map<String, Value>,
    ignored: Vec<&'static str>,
}

impl Lenient {
    fn take<T>(&mut self, name: &'static str, read: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
        let value = self.fields.get(name).filter(|value| !value.is_null())?;
        let read = read(value);
        if read.is_none() {
            self.ignored.push(name);
        }
        read
    }
}

/// The fields of an object. A value that is valid JSON but cannot be represented, such as `1e999`, becomes an
/// object, which no field accepts.
fn fields(text: &[u8]) -> Result<Map<String, Value>, Failure> {
    let syntax = |error| bad(format!("it is not valid JSON: {error}"));
    // Not parsed directly into a map, because the error would quote the unexpected value.
    let whole: &RawValue = serde_json::from_slice(text).map_err(syntax)?;
    if !whole.get().starts_with('{') {
        return Err(bad("it is not a JSON object".into()));
    }
    let fields: HashMap<String, &RawValue> = serde_json::from_str(whole.get()).map_err(syntax)?;
    let fields = fields.into_iter().map(|(name, raw)| {
        let value = serde_json::from_str(raw.get());
        (name, value.unwrap_or_else(|_| json!({})))
    });
    Ok(fields.collect())
}

/// Replaces `NaN`, `Infinity` and `-Infinity` outside of strings, which are not JSON, by empty objects of the
/// same length, which no field accepts.
fn blank_non_numbers(text: &[u8]) -> Vec<u8> {
    const NON_NUMBERS: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
    let mut text = text.to_vec();
    let (mut at, mut is_string) = (0, false);
    while at < text.len() {
        let word = NON_NUMBERS.iter().find(|word| text[at..].starts_with(word));
        match (text[at], word) {
            (b'\\', _) if is_string => at += 1,
            (b'"', _) => is_string = !is_string,
            (_, Some(word)) if !is_string => {
                let last = at + word.len() - 1;
                text[at..=last].fill(b' ');
                (text[at], text[last]) = (b'{', b'}');
                at = last;
            }
            _ => {}
        }
        at += 1;
    }
    text
}

/// Checks that a required id is present and equals the one in the file name.
fn identity(fields: &Map<String, Value>, name: &str, expected: Uuid) -> Result<(), Failure> {
    let stated = match fields.get(name) {
        Some(Value::String(stated)) => stated,
        Some(_) => return Err(bad(format!("its {name} is not a string"))),
        None => return Err(bad(format!("it has no {name}"))),
    };
    if Uuid::try_parse(stated).is_ok_and(|stated| stated == expected) {
        return Ok(());
    }
    let stated: String = stated.chars().take(FIELD_BYTES_MAX).collect();
    Err(Failure::new(
        Code::MetadataMismatch,
        format!(
            "The {name} field in the JSON file is {stated:?}, but the file name contains {expected}."
        ),
    ))
}

fn text_if(value: &Value, accept: impl FnOnce(&str) -> bool) -> Option<String> {
    let text = value.as_str()?;
    let plain = text.len() <= FIELD_BYTES_MAX && !text.contains(char::is_control);
    (plain && accept(text)).then(|| text.to_owned())
}

fn is_rfc3339(text: &str) -> bool {
    text.parse::<jiff::Timestamp>().is_ok()
}

fn parse_resolution(value: &Value) -> Option<(u32, u32)> {
    let (width, height) = value.as_str()?.split_once(['x', 'X', '×'])?;
    Some((width.trim().parse().ok()?, height.trim().parse().ok()?))
}

fn by((width, height): (u32, u32)) -> String {
    format!("{width}x{height}")
}

fn difference(field: &str, stated: &str, actual: &str) -> String {
    format!("The {field} is {stated} in the JSON file, but {actual} in the MP4.")
}

fn bad(why: String) -> Failure {
    Failure::new(
        Code::BadMetadata,
        format!("The video's JSON file is invalid: {why}."),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LESSON: &str = "34b9a0c7-62d7-4002-a642-00488b2c7f7c";
    const VIDEO: &str = "0beee2d2-ace7-4ccf-81a7-41a6c43c1a75";
    const CONVERSATION: &str = "5f1d6c0e8a7b4c3d9e2f1a0b9c8d7e6f";

    fn key() -> VideoKey {
        VideoKey::parse_stem(&format!("{LESSON}_{VIDEO}")).unwrap()
    }

    fn parse(json: &Value) -> Result<Metadata, Failure> {
        Metadata::parse(json.to_string().as_bytes(), &key())
    }

    /// The agent's JSON with one field changed.
    fn with(name: &str, value: Value) -> Value {
        let mut json = json!({
            "lesson_id": LESSON,
            "video_id": VIDEO,
            "generated_at": "2026-01-28T21:12:12+00:00",
            "duration_sec": 30,
            "format": "mp4",
            "resolution": "1280x720",
            "file_size": 2_007_071,
            "conversation_id": CONVERSATION,
        });
        json[name] = value;
        json
    }

    fn without(name: &str) -> Value {
        let mut json = with(name, Value::Null);
        json.as_object_mut().unwrap().remove(name);
        json
    }

    fn refusal(json: &str) -> (Code, String) {
        let failure = Metadata::parse(json.as_bytes(), &key()).unwrap_err();
        (failure.code, failure.message)
    }

    const PROBE: Probe = Probe {
        duration_ms: 30_059,
        width: 1280,
        height: 720,
    };

    fn warnings(json: &Value) -> Vec<String> {
        parse(json).unwrap().warnings(&PROBE, 2_007_071)
    }

    #[test]
    fn the_agents_json_round_trips() {
        let json = with("file_size", json!(2_007_071));
        let mut shown = json.clone();
        shown["duration_sec"] = json!(30.0);
        assert_eq!(parse(&json).unwrap().public(), shown);
        assert_eq!(warnings(&json), [""; 0]);
    }

    #[test]
    fn only_the_ids_are_required() {
        let json = json!({"lesson_id": LESSON, "video_id": VIDEO});
        assert_eq!(parse(&json).unwrap().public(), json);
        assert_eq!(warnings(&json), [""; 0]);
    }

    #[test]
    fn another_videos_json_is_a_mismatch() {
        for (name, value) in [
            ("lesson_id", VIDEO.to_string()),
            ("video_id", LESSON.to_uppercase()),
            ("video_id", format!("{VIDEO} ")),
        ] {
            let (code, message) = refusal(&with(name, json!(value)).to_string());
            assert_eq!(code, Code::MetadataMismatch);
            assert!(
                message.starts_with(&format!(
                    "The {name} field in the JSON file is \"{value}\", but"
                )),
                "{message}"
            );
        }
        let (_, message) = refusal(&with("lesson_id", json!("é".repeat(9000))).to_string());
        assert!(message.chars().count() < 300);
    }

    #[test]
    fn ids_are_compared_by_value() {
        for same in [
            VIDEO.to_uppercase(),
            VIDEO.replace('-', ""),
            format!("{{{VIDEO}}}"),
            format!("urn:uuid:{VIDEO}"),
        ] {
            let metadata = parse(&with("video_id", json!(same))).unwrap();
            assert_eq!(metadata.public()["video_id"], VIDEO);
        }
    }

    #[test]
    fn a_number_that_json_cannot_represent_makes_only_its_field_invalid() {
        let template = with("duration_sec", json!("?")).to_string();
        for number in ["NaN", "Infinity", "-Infinity", "1e999", "-1E+999"] {
            let json = template.replace("\"?\"", number);
            let metadata = Metadata::parse(json.as_bytes(), &key()).unwrap();
            let ignored = "The duration_sec field in the JSON file is invalid and was ignored.";
            assert_eq!(metadata.warnings(&PROBE, 2_007_071), [ignored], "{number}");
            // An unknown field does not matter, and neither does what its text looks like.
            let unknown = format!(
                "{{\"x\":[{number},{{\"y\":{number}}}],{}",
                &without("format").to_string()[1..]
            );
            assert!(
                Metadata::parse(unknown.as_bytes(), &key()).is_ok(),
                "{number}"
            );
            let id = template.replace(&format!("\"{VIDEO}\""), number);
            assert_eq!(
                refusal(&id).1,
                "The video's JSON file is invalid: its video_id is not a string."
            );
            let bad = template.replace("\"?\"", &format!("{number}x"));
            assert_eq!(refusal(&bad).0, Code::BadMetadata);
        }
        let text = with("format", json!("\\\"NaN\\"));
        assert_eq!(parse(&text).unwrap().format.unwrap(), "\\\"NaN\\");
    }

    #[test]
    fn json_without_both_ids_is_bad() {
        let nested = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
        for json in [
            "",
            "null",
            "[]",
            "<!DOCTYPE html>",
            &json!("s3cret".repeat(100)).to_string(),
            "{\"lesson_id\":",
            &without("lesson_id").to_string(),
            &without("video_id").to_string(),
            &with("video_id", json!(7)).to_string(),
            &with("video_id", Value::Null).to_string(),
            &format!("{} {{}}", with("format", json!("mp4"))),
            &format!("{{\"lesson_id\":{nested}}}"),
            &format!("{{\"x\":1e{}}}", "9".repeat(60_000)),
            &with("note", json!("x".repeat(METADATA_BYTES_MAX))).to_string(),
        ] {
            let (code, message) = refusal(json);
            assert_eq!(code, Code::BadMetadata, "{message}");
            assert!(message.len() < 200, "{message}");
        }
        let not_utf8 = Metadata::parse(b"{\"lesson_id\":\"\xff\"}", &key()).unwrap_err();
        assert_eq!(not_utf8.code, Code::BadMetadata);
    }

    #[test]
    fn a_byte_order_mark_is_skipped_and_the_last_of_two_fields_counts() {
        let json = format!(
            "\u{feff}{{\"video_id\":\"other\",\"lesson_id\":\"{LESSON}\",\"video_id\":\"{VIDEO}\"}}"
        );
        assert!(Metadata::parse(json.as_bytes(), &key()).is_ok());
    }

    #[test]
    fn an_invalid_optional_field_is_ignored_with_a_warning() {
        for (name, value) in [
            ("generated_at", json!("yesterday")),
            ("generated_at", json!("2026-01-28T21:12:12")),
            ("duration_sec", json!("30")),
            ("duration_sec", json!(-1)),
            ("format", json!(["mp4"])),
            ("format", json!("x".repeat(101))),
            ("resolution", json!("720p")),
            ("resolution", json!("1280x-720")),
            ("file_size", json!(1.5)),
            ("file_size", json!(-1)),
            ("conversation_id", json!("../../secrets")),
            ("conversation_id", json!(format!("{{{VIDEO}}}"))),
            ("conversation_id", json!(&CONVERSATION[1..])),
        ] {
            let json = with(name, value);
            assert_eq!(
                warnings(&json),
                [format!(
                    "The {name} field in the JSON file is invalid and was ignored."
                )]
            );
            assert_eq!(parse(&json).unwrap().public().get(name), None);
        }
        assert_eq!(warnings(&with("conversation_id", Value::Null)), [""; 0]);
        assert_eq!(warnings(&with("conversation_id", json!(VIDEO))), [""; 0]);
    }

    #[test]
    fn a_difference_from_the_mp4_is_a_warning() {
        assert_eq!(warnings(&with("duration_sec", json!(29.56))), [""; 0]);
        for (name, value, warning) in [
            (
                "duration_sec",
                json!(29.5),
                "The duration is 29.5 s in the JSON file, but 30.059 s in the MP4.",
            ),
            (
                "resolution",
                json!("1920x1080"),
                "The resolution is 1920x1080 in the JSON file, but 1280x720 in the MP4.",
            ),
            (
                "file_size",
                json!(1),
                "The size is 1 bytes in the JSON file, but 2,007,071 bytes in the MP4.",
            ),
            (
                "format",
                json!("webm"),
                "The format is \"webm\" in the JSON file, but mp4 in the MP4.",
            ),
        ] {
            assert_eq!(warnings(&with(name, value)), [warning]);
        }
    }

    #[test]
    fn unknown_fields_are_never_shown() {
        let json = with("upload_token", json!("s3cret"));
        let metadata = parse(&json).unwrap();
        assert!(!metadata.public().to_string().contains("s3cret"));
        assert!(!format!("{metadata:?}").contains("s3cret"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), field: String) {
            let _ = Metadata::parse(&bytes, &key());
            for name in ["generated_at", "format", "resolution", "conversation_id"] {
                let metadata = parse(&with(name, json!(field))).unwrap();
                prop_assert!(!metadata.warnings(&PROBE, 1).is_empty());
            }
        }
    }
}

//! A streaming check that a file is a complete MP4 with a video track, and the duration of that video.
//!
//! An MP4 is a sequence of boxes, each with a size, a four-letter type and content (ISO/IEC 14496-12, 4.2).
//! The parser skips all boxes except the index (`moov`, which may be the last box) and the indexes of
//! fragments (`moof`). Inside those it skips all boxes except the required ones, so that a new, unusual or
//! large box, such as cover art, does not cause a playable video to be rejected.

mod index;

use std::mem;

use mp4_atom::{
    Atom as _, DecodeMaybe as _, Edts, Elst, FourCC, Ftyp, Hdlr, Header, Mdat, Mdhd, Mdia, Mehd,
    Minf, Moof, Moov, Mvex, Mvhd, Stbl, Stsd, Stts, Tfdt, Tfhd, Tkhd, Traf, Trak, Trex, Trun,
};

use self::index::Index;
use super::failure::{Code, Failure};

/// The maximum size of the parsed boxes of the index, in bytes. Skipped boxes are not counted. Sufficient for
/// several hours of video.
pub const MOOV_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The maximum size of the parsed boxes of a fragment's index, in bytes. The decoded form is up to ten times
/// as large.
pub const MOOF_BYTES_MAX: u64 = 1024 * 1024;

/// The longest accepted video, in milliseconds (24 days): `lesson_assets.duration_ms` is a 32-bit integer.
pub const DURATION_MS_MAX: u64 = i32::MAX as u64;

/// The size of the smallest box, in bytes: a 32-bit size and a type.
const HEADER_BYTES_MIN: u64 = 8;

/// Properties of a complete MP4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Duration, in milliseconds. Equals `format.duration` of ffprobe.
    pub duration_ms: u64,
    /// Width of the encoded frames, in pixels.
    pub width: u32,
    /// Height of the encoded frames, in pixels.
    pub height: u32,
}

/// A push parser for the boxes of a file. The result does not depend on how the file is split into chunks.
///
/// Buffers the required boxes of one `moov` or `moof` at a time and a few integers per track.
pub struct BoxWalk {
    /// The length of the file, in bytes.
    total_len: u64,
    /// The number of bytes that were fed.
    offset: u64,
    state: State,
    /// The boxes around the current one, within an index: the index itself first.
    open: Vec<Open>,
    /// The required boxes of the index so far, in the same form as in the file.
    kept: Vec<u8>,
    index: Option<Index>,
    has_media: bool,
}

enum State {
    /// Within a header, or between boxes. Contains the bytes of the header so far.
    Header(Vec<u8>),
    /// Within a box that is skipped.
    Skip { left: u64 },
    /// Within a required box of an index.
    Keep { left: u64 },
    /// The file is invalid. The rest is ignored.
    Invalid(Failure),
}

impl State {
    /// This state, or the next header if nothing is left of the current box.
    fn or_header(self) -> Self {
        match self {
            Self::Keep { left: 0 } | Self::Skip { left: 0 } => Self::Header(Vec::new()),
            other => other,
        }
    }
}

/// A box of an index that contains other boxes.
struct Open {
    kind: FourCC,
    /// Where it ends in the file.
    end: u64,
    /// Where its header begins in [`BoxWalk::kept`].
    header: usize,
}

/// What to do with a box in an index.
enum Inside {
    /// Contains required boxes.
    Enter,
    /// Required.
    Keep,
    Skip,
}

impl Inside {
    /// These are all the boxes that [`Index`] reads. The depth is limited, because no box contains itself.
    fn of(parent: FourCC, kind: FourCC) -> Self {
        match (parent, kind) {
            (Moov::KIND, Trak::KIND | Mvex::KIND)
            | (Trak::KIND, Edts::KIND | Mdia::KIND)
            | (Mdia::KIND, Minf::KIND)
            | (Minf::KIND, Stbl::KIND)
            | (Moof::KIND, Traf::KIND) => Self::Enter,
            (Moov::KIND, Mvhd::KIND)
            | (Mvex::KIND, Mehd::KIND | Trex::KIND)
            | (Trak::KIND, Tkhd::KIND)
            | (Edts::KIND, Elst::KIND)
            | (Mdia::KIND, Mdhd::KIND | Hdlr::KIND)
            | (Stbl::KIND, Stsd::KIND | Stts::KIND)
            | (Traf::KIND, Tfhd::KIND | Tfdt::KIND | Trun::KIND) => Self::Keep,
            _ => Self::Skip,
        }
    }
}

impl BoxWalk {
    /// Creates a parser for a file of `total_len` bytes.
    pub fn new(total_len: u64) -> Self {
        Self {
            total_len,
            offset: 0,
            state: State::Header(Vec::new()),
            open: Vec::new(),
            kept: Vec::new(),
            index: None,
            has_media: false,
        }
    }

    /// Parses the next bytes of the file. Bytes beyond its length are ignored.
    pub fn feed(&mut self, chunk: &[u8]) {
        let room = usize::try_from(self.total_len - self.offset).unwrap_or(usize::MAX);
        let mut rest = &chunk[..chunk.len().min(room)];
        while !rest.is_empty() {
            let taken = match &mut self.state {
                State::Header(seen) => {
                    seen.push(rest[0]);
                    1
                }
                State::Skip { left } => take(left, rest).len(),
                State::Keep { left } => {
                    let taken = take(left, rest);
                    self.kept.extend_from_slice(taken);
                    taken.len()
                }
                State::Invalid(_) => rest.len(),
            };
            rest = &rest[taken..];
            self.offset += taken as u64;
            self.advance();
        }
    }

    /// The result, after all bytes were fed.
    ///
    /// # Errors
    /// `not_an_mp4`, `truncated` or `no_video_track`.
    pub fn finish(self) -> Result<Probe, Failure> {
        match &self.state {
            State::Invalid(failure) => return Err(failure.clone()),
            _ if self.total_len == 0 => return Err(not_an_mp4("The file is empty".into())),
            _ if self.total_len < HEADER_BYTES_MIN => {
                return Err(not_an_mp4(format!(
                    "The file is only {} bytes long",
                    self.total_len
                )));
            }
            _ if self.offset < self.total_len => {
                return Err(truncated(format!(
                    "The file is {} bytes long, but only {} bytes arrived",
                    grouped(self.total_len),
                    grouped(self.offset)
                )));
            }
            // Players ignore up to seven zeros after the last box as padding.
            State::Header(seen) if seen.iter().all(|&byte| byte == 0) => {}
            _ => return Err(truncated("The file ends inside a box header".into())),
        }
        let index = self
            .index
            .ok_or_else(|| truncated("The index (moov) is missing".into()))?;
        let (width, height) = index.dimensions.ok_or_else(|| {
            Failure::new(
                Code::NoVideoTrack,
                "The MP4 has no video track; render the video again and push it.",
            )
        })?;
        if !self.has_media {
            return Err(truncated(
                "The MP4 has an index but no media data (mdat)".into(),
            ));
        }
        let duration_ms = index.duration_ms();
        if duration_ms > DURATION_MS_MAX {
            let cause = "The index (moov) specifies a duration of more than 24 days";
            return Err(truncated(cause.into()));
        }
        Ok(Probe {
            duration_ms,
            width,
            height,
        })
    }

    /// Enters the next state if the current one is complete.
    fn advance(&mut self) {
        let next = match mem::replace(&mut self.state, State::Header(Vec::new())) {
            State::Header(seen) if self.open.is_empty() => self.read_header(seen),
            State::Header(seen) => self.read_inner_header(seen),
            State::Invalid(failure) => Err(failure),
            incomplete => Ok(incomplete.or_header()),
        };
        let next = next.and_then(|next| self.close_boxes(next));
        self.state = next.unwrap_or_else(State::Invalid);
    }

    /// Enters the top-level box with the header `seen`, or waits for the rest of the header.
    fn read_header(&mut self, seen: Vec<u8>) -> Result<State, Failure> {
        let start = self.offset - seen.len() as u64;
        if start == 0
            && seen.len() as u64 == HEADER_BYTES_MIN
            && !seen.ends_with(&<[u8; 4]>::from(Ftyp::KIND))
        {
            let begin = seen.escape_ascii();
            return Err(not_an_mp4(format!(
                "The file begins with \"{begin}\", but the first box of an MP4 must be \"ftyp\""
            )));
        }
        let header = match Header::decode_maybe(&mut seen.as_slice()) {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(State::Header(seen)),
            Err(_) => {
                return Err(truncated(format!(
                    "The box at byte {} has an invalid size",
                    grouped(start)
                )));
            }
        };
        let left_in_file = self.total_len - self.offset;
        // A box without a size extends to the end of the file.
        let left = header.size.map_or(left_in_file, |size| size as u64);
        if left > left_in_file {
            let kind = <[u8; 4]>::from(header.kind);
            return Err(truncated(format!(
                "The file ends at byte {}, but its \"{}\" box extends to byte {}",
                grouped(self.total_len),
                kind.escape_ascii(),
                grouped(self.offset.saturating_add(left))
            )));
        }
        self.has_media |= header.kind == Mdat::KIND && left > 0;
        match header.kind {
            // Players use the first index only. Fragments before it cannot be interpreted.
            Moov::KIND if self.index.is_none() => self.enter(header.kind, left),
            Moof::KIND if self.index.is_some() => self.enter(header.kind, left),
            _ => Ok(State::Skip { left }.or_header()),
        }
    }

    /// Enters the box within an index with the header `seen`, or waits for the rest of the header.
    fn read_inner_header(&mut self, seen: Vec<u8>) -> Result<State, Failure> {
        let parent = self.open.last().expect("only within an index");
        let left_in_parent = parent.end - self.offset;
        let header = match Header::decode_maybe(&mut seen.as_slice()) {
            Ok(None) => return Ok(State::Header(seen)),
            Ok(Some(header)) if header.size.unwrap_or(0) as u64 <= left_in_parent => header,
            // What follows a damaged box cannot be interpreted. If it is required, the index is damaged.
            Ok(Some(_)) | Err(_) => {
                let left = left_in_parent;
                return Ok(State::Skip { left }.or_header());
            }
        };
        let left = header.size.map_or(left_in_parent, |size| size as u64);
        match Inside::of(parent.kind, header.kind) {
            Inside::Enter => self.enter(header.kind, left),
            Inside::Keep => {
                self.keep_header(header.kind, left)?;
                Ok(State::Keep { left }.or_header())
            }
            Inside::Skip => Ok(State::Skip { left }.or_header()),
        }
    }

    /// Enters an index, or a box in it that contains required boxes.
    fn enter(&mut self, kind: FourCC, left: u64) -> Result<State, Failure> {
        self.open.push(Open {
            kind,
            end: self.offset + left,
            header: self.kept.len(),
        });
        // The size is written when the box ends.
        self.keep_header(kind, 0)?;
        Ok(State::Header(Vec::new()))
    }

    /// Keeps the header of a box and checks that its content of `left` bytes may be kept too.
    fn keep_header(&mut self, kind: FourCC, left: u64) -> Result<(), Failure> {
        let index = self.open.first().map_or(kind, |open| open.kind);
        let bytes_max = match index {
            Moof::KIND => MOOF_BYTES_MAX,
            _ => MOOV_BYTES_MAX,
        };
        let size = HEADER_BYTES_MIN + left;
        match u32::try_from(size) {
            Ok(size_bits) if self.kept.len() as u64 + size <= bytes_max => {
                self.kept.extend(size_bits.to_be_bytes());
                self.kept.extend(<[u8; 4]>::from(kind));
                Ok(())
            }
            _ => Err(not_an_mp4(format!(
                "The boxes that describe the tracks in the index ({index}) are larger than the limit of {} bytes",
                grouped(bytes_max)
            ))),
        }
    }

    /// Ends the boxes that end here. At the end of an index, reads it.
    fn close_boxes(&mut self, mut next: State) -> Result<State, Failure> {
        while let Some(open) = self.open.pop_if(|open| open.end == self.offset) {
            // A header that the end cuts off is ignored.
            next = State::Header(Vec::new());
            // The limits of both indexes are smaller than 4 GiB.
            let size = (self.kept.len() - open.header) as u32;
            self.kept[open.header..open.header + 4].copy_from_slice(&size.to_be_bytes());
            if self.open.is_empty() {
                let kept = mem::take(&mut self.kept);
                self.read_index(&kept[HEADER_BYTES_MIN as usize..])?;
            }
        }
        Ok(next)
    }

    /// Reads the required boxes of a `moov`, or of a `moof` after it.
    fn read_index(&mut self, kept: &[u8]) -> Result<(), Failure> {
        match &mut self.index {
            Some(index) => index
                .add_fragment(kept)
                .ok_or_else(|| damaged("fragment index (moof)")),
            None => {
                self.index = Some(Index::read(kept).ok_or_else(|| damaged("index (moov)"))?);
                Ok(())
            }
        }
    }
}

/// Splits the content of the current box off `rest`.
fn take<'a>(left: &mut u64, rest: &'a [u8]) -> &'a [u8] {
    let taken = &rest[..rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX))];
    *left -= taken.len() as u64;
    taken
}

/// A number with thousands separators, for messages.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn not_an_mp4(cause: String) -> Failure {
    Failure::new(Code::NotAnMp4, format!("{cause}; push the rendered MP4."))
}

fn truncated(cause: String) -> Failure {
    let message = format!("{cause}; render the video again and push it.");
    Failure::new(Code::Truncated, message)
}

fn damaged(index: &str) -> Failure {
    truncated(format!("The {index} is damaged"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    macro_rules! fixture {
        ($name:literal) => {
            include_bytes!(concat!("../../../fixtures/videos/", $name))
        };
    }

    const GOOD: &[u8] = fixture!("good.mp4");
    const FRAGMENTED: &[u8] = fixture!("fragmented.mp4");
    const HYBRID: &[u8] = fixture!("fragmented_hybrid.mp4");

    fn probe(file: &[u8]) -> Result<Probe, Failure> {
        let mut walk = BoxWalk::new(file.len() as u64);
        walk.feed(file);
        walk.finish()
    }

    fn refusal(file: &[u8]) -> (Code, String) {
        let failure = probe(file).unwrap_err();
        (failure.code, failure.message)
    }

    fn mp4_box(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let size = u32::try_from(8 + content.len()).unwrap();
        [&size.to_be_bytes(), kind.as_slice(), content].concat()
    }

    /// The offset of the first box of this type.
    fn position(file: &[u8], kind: &[u8; 4]) -> usize {
        file.windows(4).position(|w| w == kind).unwrap() - 4
    }

    /// Adds `by` to the size in the header of the first box of this type.
    fn grow(file: &mut [u8], kind: &[u8; 4], by: u32) {
        let at = position(file, kind);
        let size = u32::from_be_bytes(file[at..at + 4].try_into().unwrap()) + by;
        file[at..at + 4].copy_from_slice(&size.to_be_bytes());
    }

    #[test]
    fn durations_and_dimensions_equal_those_of_ffprobe() {
        for (file, milliseconds) in [
            (GOOD, 1500),
            (fixture!("second.mp4"), 1000),
            (fixture!("third.mp4"), 2000),
            (fixture!("reordered.mp4"), 1500),
            (fixture!("moov_last.mp4"), 1500),
            (fixture!("trailing_free.mp4"), 1500),
            (FRAGMENTED, 1546),
            (HYBRID, 1546),
            (fixture!("fragmented_late_sound.mp4"), 2499),
        ] {
            let expected = Probe {
                duration_ms: milliseconds,
                width: 160,
                height: 90,
            };
            assert_eq!(probe(file), Ok(expected));
        }
    }

    #[test]
    fn a_failure_names_the_cause() {
        assert_eq!(
            refusal(b""),
            (
                Code::NotAnMp4,
                "The file is empty; push the rendered MP4.".into()
            )
        );
        assert_eq!(refusal(&GOOD[..7]).0, Code::NotAnMp4);
        assert_eq!(
            refusal(fixture!("not_a_video.mp4")),
            (
                Code::NotAnMp4,
                r#"The file begins with "<!DOCTYP", but the first box of an MP4 must be "ftyp"; push the rendered MP4."#.into()
            )
        );
        assert_eq!(refusal(fixture!("lfs_pointer.mp4")).0, Code::NotAnMp4);
        assert_eq!(
            refusal(fixture!("truncated.mp4")),
            (
                Code::Truncated,
                r#"The file ends at byte 9,000, but its "mdat" box extends to byte 12,522; render the video again and push it."#
                    .into()
            )
        );
        assert_eq!(
            refusal(fixture!("audio_only.mp4")),
            (
                Code::NoVideoTrack,
                "The MP4 has no video track; render the video again and push it.".into()
            )
        );
    }

    #[test]
    fn a_file_without_index_or_media_data_is_truncated() {
        let (moov, mdat) = (position(GOOD, b"moov"), position(GOOD, b"mdat"));
        let without_index = [&GOOD[..moov], &GOOD[mdat..]].concat();
        assert!(
            refusal(&without_index)
                .1
                .starts_with("The index (moov) is missing")
        );
        let (code, message) = refusal(&GOOD[..mdat]);
        assert_eq!(code, Code::Truncated);
        assert!(
            message.starts_with("The MP4 has an index but no media data"),
            "{message}"
        );
    }

    #[test]
    fn missing_bytes_are_detected() {
        let mut walk = BoxWalk::new(GOOD.len() as u64);
        walk.feed(&GOOD[..10_000]);
        let failure = walk.finish().unwrap_err();
        assert_eq!(failure.code, Code::Truncated);
        assert!(
            failure
                .message
                .starts_with("The file is 12,522 bytes long, but only 10,000 bytes arrived")
        );
    }

    #[test]
    fn a_box_may_have_a_64_bit_size_or_extend_to_the_end() {
        let mdat = position(GOOD, b"mdat");
        let (before, content) = (&GOOD[..mdat], &GOOD[mdat + 8..]);
        let to_the_end = [before, b"\0\0\0\0mdat", content].concat();
        assert_eq!(probe(&to_the_end), probe(GOOD));

        let wide = |size: u64| [before, b"\0\0\0\x01mdat", &size.to_be_bytes(), content].concat();
        assert_eq!(probe(&wide(16 + content.len() as u64)), probe(GOOD));
        for impossible in [15, 17 + content.len() as u64, u64::MAX] {
            assert_eq!(
                refusal(&wide(impossible)).0,
                Code::Truncated,
                "{impossible}"
            );
        }
    }

    #[test]
    fn padding_after_the_last_box_is_not_a_box() {
        assert_eq!(probe(&[GOOD, &[0; 5]].concat()), probe(GOOD));
        assert_eq!(
            refusal(&[GOOD, b"\0\0\0\x08mda"].concat()).0,
            Code::Truncated
        );
    }

    #[test]
    fn a_fragmented_file_may_contain_its_duration() {
        // The tool that wrote the fixture omits mehd. 7000 ticks of mvhd, 1000 per second.
        let mehd = mp4_box(b"mehd", &[0, 0, 0, 0, 0, 0, 0x1b, 0x58]);
        let mut file = FRAGMENTED.to_vec();
        grow(&mut file, b"moov", mehd.len() as u32);
        grow(&mut file, b"mvex", mehd.len() as u32);
        let content = position(&file, b"mvex") + 8;
        file.splice(content..content, mehd.clone());
        assert_eq!(probe(&file).unwrap().duration_ms, 7000);

        // Live packagers write zero.
        let value = content + 12;
        file[value..value + 4].fill(0);
        assert_eq!(probe(&file), probe(FRAGMENTED));
    }

    #[test]
    fn samples_are_counted_if_the_index_has_no_duration() {
        let mut file = GOOD.to_vec();
        let duration = position(&file, b"mvhd") + 8 + 16;
        for unknown in [0, u32::MAX] {
            file[duration..duration + 4].copy_from_slice(&unknown.to_be_bytes());
            // The last audio samples are 46 ms of padding, which the edit list would hide.
            assert_eq!(probe(&file).unwrap().duration_ms, 1546);
        }
    }

    #[test]
    fn a_large_box_that_is_not_required_is_skipped() {
        let large = vec![0; 2 * MOOV_BYTES_MAX as usize];
        let covr = mp4_box(b"covr", &mp4_box(b"data", &large));
        let meta = mp4_box(
            b"meta",
            &[[0; 4].as_slice(), &mp4_box(b"ilst", &covr)].concat(),
        );
        let udta = mp4_box(b"udta", &meta);
        let chains: [(&[u8], &[&[u8; 4]]); 3] = [
            (GOOD, &[b"moov", b"trak", b"mdia", b"minf", b"stbl"]),
            (fixture!("moov_last.mp4"), &[b"moov", b"trak", b"mdia"]),
            (FRAGMENTED, &[b"moof", b"traf"]),
        ];
        for (original, chain) in chains {
            for (depth, kind) in (1..=chain.len()).zip([b"udta", b"free", b"uuid"].iter().cycle()) {
                let mut extra = udta.clone();
                extra[4..8].copy_from_slice(*kind);
                let mut file = original.to_vec();
                let start = position(&file, chain[depth - 1]);
                let size = u32::from_be_bytes(file[start..start + 4].try_into().unwrap());
                // At the end of the box and at its beginning.
                for at in [start + size as usize, start + 8] {
                    file.splice(at..at, extra.clone());
                }
                for outer in &chain[..depth] {
                    grow(&mut file, outer, 2 * extra.len() as u32);
                }
                assert_eq!(probe(&file), probe(original), "{:?}", &chain[..depth]);
            }
        }
    }

    #[test]
    fn the_required_boxes_have_a_size_limit() {
        let ftyp = mp4_box(b"ftyp", b"isom");
        let one = mp4_box(b"mvhd", &vec![0; MOOV_BYTES_MAX as usize - 15]);
        let tracks = mp4_box(b"trak", b"").repeat(MOOV_BYTES_MAX as usize / 8);
        for content in [one, tracks] {
            let mut walk = BoxWalk::new(1 << 40);
            walk.feed(&[ftyp.clone(), mp4_box(b"moov", &content)].concat());
            assert!(walk.kept.capacity() as u64 <= 2 * MOOV_BYTES_MAX);
            let failure = walk.finish().unwrap_err();
            assert_eq!(failure.code, Code::NotAnMp4, "{failure}");
            let message = failure.message;
            assert!(message.contains("limit of 4,194,304 bytes"), "{message}");
        }
    }

    #[test]
    fn a_gap_between_fragments_counts() {
        let starts: Vec<usize> = (0..FRAGMENTED.len() - 8)
            .filter(|&at| &FRAGMENTED[at + 4..at + 8] == b"moof")
            .collect();
        let [_, second, third] = starts[..] else {
            panic!("three fragments, not {starts:?}")
        };
        let file = [&FRAGMENTED[..second], &FRAGMENTED[third..]].concat();
        assert_eq!(probe(&file), probe(FRAGMENTED));
    }

    #[test]
    fn samples_may_use_the_default_duration() {
        let mut file = FRAGMENTED.to_vec();
        let default_sample_duration = position(&file, b"trex") + 8 + 12;
        file[default_sample_duration..default_sample_duration + 4]
            .copy_from_slice(&10_240u32.to_be_bytes());
        // Another fragment of the first track: three samples without any fields.
        let tfhd = mp4_box(b"tfhd", &[0, 0, 0, 0, 0, 0, 0, 1]);
        let trun = mp4_box(b"trun", &[0, 0, 0, 0, 0, 0, 0, 3]);
        file.extend(mp4_box(b"moof", &mp4_box(b"traf", &[tfhd, trun].concat())));
        // 1.546 s and 3 x 10,240 ticks of 1/10,240 s.
        assert_eq!(probe(&file).unwrap().duration_ms, 4546);
    }

    #[test]
    fn a_million_claimed_samples_cost_nothing() {
        // Without fields per sample, a run contains only the number of samples.
        let trun = mp4_box(b"trun", &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        let tfhd = mp4_box(b"tfhd", &[0, 0, 0, 8, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]);
        let moof = mp4_box(b"moof", &mp4_box(b"traf", &[tfhd, trun].concat()));
        assert_eq!(refusal(&[FRAGMENTED, &moof].concat()).0, Code::Truncated);
    }

    #[derive(Clone, Debug)]
    enum Mutation {
        Flip(prop::sample::Index, u8),
        Insert(prop::sample::Index, Vec<u8>),
        Delete(prop::sample::Index, usize),
        Truncate(prop::sample::Index),
    }

    fn mutation() -> impl Strategy<Value = Mutation> {
        let at = any::<prop::sample::Index>;
        prop_oneof![
            4 => (at(), 1..=u8::MAX).prop_map(|(at, bits)| Mutation::Flip(at, bits)),
            1 => (at(), prop::collection::vec(any::<u8>(), 1..16)).prop_map(|(at, new)| Mutation::Insert(at, new)),
            1 => (at(), 1usize..16).prop_map(|(at, count)| Mutation::Delete(at, count)),
            1 => at().prop_map(Mutation::Truncate),
        ]
    }

    fn mutate(file: &mut Vec<u8>, mutation: Mutation) {
        if file.is_empty() {
            return;
        }
        match mutation {
            Mutation::Flip(at, bits) => *at.get_mut(file) ^= bits,
            Mutation::Insert(at, new) => {
                let at = at.index(file.len());
                file.splice(at..at, new);
            }
            Mutation::Delete(at, count) => {
                let at = at.index(file.len());
                file.drain(at..(at + count).min(file.len()));
            }
            Mutation::Truncate(at) => file.truncate(at.index(file.len())),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_result_does_not_depend_on_the_chunks(
            original in prop::sample::select(vec![GOOD, fixture!("moov_last.mp4"), FRAGMENTED, HYBRID]),
            mutations in prop::collection::vec(mutation(), 0..6),
            chunks in prop::collection::vec(1usize..700, 1..40),
        ) {
            let mut file = original.to_vec();
            for mutation in mutations {
                mutate(&mut file, mutation);
            }
            let mut walk = BoxWalk::new(file.len() as u64);
            let mut rest = file.as_slice();
            for size in chunks.into_iter().cycle() {
                let (chunk, after) = rest.split_at(size.min(rest.len()));
                walk.feed(chunk);
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(walk.finish(), probe(&file));
        }
    }
}

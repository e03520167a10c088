//! The fields of an index (`moov`) and of the indexes of fragments (`moof`).

use std::collections::BTreeMap;

use mp4_atom::{
    Atom, Decode as _, DecodeMaybe as _, Edts, Elst, FourCC, Hdlr, Header, Mdhd, Mdia, Mehd, Minf,
    Mvex, Mvhd, Stbl, Stsd, Stts, Tfdt, Tfhd, Tkhd, Traf, Trak, Trex, Trun, TrunSamples, Visual,
};

/// The required parts of `moov`, updated by the fragments that follow.
pub(super) struct Index {
    /// Ticks per second of `duration`.
    timescale: u32,
    /// The duration of the video, in ticks, if the index contains it.
    duration: Option<u64>,
    /// Width and height of the first video track, in pixels.
    pub(super) dimensions: Option<(u32, u32)>,
    tracks: BTreeMap<u32, Track>,
}

#[derive(Default)]
struct Track {
    /// Ticks per second.
    timescale: u32,
    /// The duration of samples whose fragment does not contain one, in ticks.
    default_sample_duration: u32,
    /// The end of the last sample so far, in ticks.
    end: u64,
    /// The initial delay of the track, in ticks of the index.
    delay: u64,
}

impl Index {
    /// Reads the content of a `moov`; `None` if a required box is missing or damaged.
    pub(super) fn read(moov: &[u8]) -> Option<Self> {
        let mvhd: Mvhd = decode(moov, &[])?;
        let mut index = Self {
            timescale: mvhd.timescale,
            duration: Some(mvhd.duration),
            dimensions: None,
            tracks: BTreeMap::new(),
        };
        for (_, trak) in boxes(moov).filter(|(kind, _)| *kind == Trak::KIND) {
            index.add_track(trak)?;
        }
        if let Some(mvex) = find(moov, &[Mvex::KIND]) {
            index.duration = decode(mvex, &[]).map(|mehd: Mehd| mehd.fragment_duration);
            for trex in boxes(mvex).filter_map(|(kind, body)| parse::<Trex>(kind, body)) {
                if let Some(track) = index.tracks.get_mut(&trex.track_id) {
                    track.default_sample_duration = trex.default_sample_duration;
                }
            }
        }
        // Streaming writers, which cannot seek back, write 0 or all ones (32 or 64 bits) for an unknown
        // duration.
        index.duration = index
            .duration
            .filter(|ticks| ![0, u64::from(u32::MAX), u64::MAX].contains(ticks));
        (index.timescale > 0).then_some(index)
    }

    fn add_track(&mut self, trak: &[u8]) -> Option<()> {
        const STBL: [FourCC; 3] = [Mdia::KIND, Minf::KIND, Stbl::KIND];
        let tkhd: Tkhd = decode(trak, &[])?;
        let mdhd: Mdhd = decode(trak, &[Mdia::KIND])?;
        let stts: Option<Stts> = decode(trak, &STBL);
        let runs = stts.iter().flat_map(|stts| &stts.entries);
        let elst: Option<Elst> = decode(trak, &[Edts::KIND]);
        let first_edit = elst.and_then(|elst| elst.entries.into_iter().next());
        let track = Track {
            timescale: mdhd.timescale,
            default_sample_duration: 0,
            end: runs.fold(0, |end: u64, run| {
                end.saturating_add(u64::from(run.sample_count) * u64::from(run.sample_delta))
            }),
            // An empty edit at the beginning delays the track.
            delay: first_edit
                .filter(|edit| edit.media_time.is_none())
                .map_or(0, |edit| edit.segment_duration),
        };
        self.tracks.insert(tkhd.track_id, track);
        if self.dimensions.is_none() && is_video(trak) {
            // The first sample entry follows version, flags and count. The fields of `Visual` are the same
            // for all codecs.
            let entries =
                find(trak, &[Mdia::KIND, Minf::KIND, Stbl::KIND, Stsd::KIND])?.get(8..)?;
            let (_, mut entry) = boxes(entries).next()?;
            let visual = Visual::decode(&mut entry).ok()?;
            self.dimensions = Some((visual.width.into(), visual.height.into()));
        }
        Some(())
    }

    /// Reads the content of a `moof`; `None` if it is damaged.
    pub(super) fn add_fragment(&mut self, moof: &[u8]) -> Option<()> {
        for (_, traf) in boxes(moof).filter(|(kind, _)| *kind == Traf::KIND) {
            let tfhd: Tfhd = decode(traf, &[])?;
            let Some(track) = self.tracks.get_mut(&tfhd.track_id) else {
                continue;
            };
            let default = tfhd
                .default_sample_duration
                .unwrap_or(track.default_sample_duration);
            // There may be a gap between two fragments.
            if let Some(tfdt) = decode::<Tfdt>(traf, &[]) {
                track.end = tfdt.base_media_decode_time;
            }
            for (kind, body) in boxes(traf).filter(|(kind, _)| *kind == Trun::KIND) {
                let run = match parse::<Trun>(kind, body)?.samples {
                    TrunSamples::Inherited { count, .. } => u64::from(count) * u64::from(default),
                    TrunSamples::Explicit(samples) => samples
                        .iter()
                        .map(|sample| u64::from(sample.duration.unwrap_or(default)))
                        .sum(),
                };
                track.end = track.end.saturating_add(run);
            }
        }
        Some(())
    }

    /// The duration in the index, or else the end of the last track.
    pub(super) fn duration_ms(&self) -> u64 {
        let ends = self
            .tracks
            .values()
            .filter(|track| track.timescale > 0)
            .map(|track| {
                to_ms(track.end, track.timescale).saturating_add(to_ms(track.delay, self.timescale))
            });
        match self.duration {
            Some(ticks) => to_ms(ticks, self.timescale),
            None => ends.max().unwrap_or(0),
        }
    }
}

/// Whether a track is a video track. Its name, which may not be UTF-8, is not decoded.
fn is_video(trak: &[u8]) -> bool {
    find(trak, &[Mdia::KIND, Hdlr::KIND]).and_then(|hdlr| hdlr.get(8..12)) == Some(b"vide")
}

/// The types and contents of consecutive boxes. Ends before the first box that is too large.
fn boxes(mut row: &[u8]) -> impl Iterator<Item = (FourCC, &[u8])> {
    std::iter::from_fn(move || {
        let header = Header::decode_maybe(&mut row).ok()??;
        let (body, rest) = row.split_at_checked(header.size.unwrap_or(row.len()))?;
        row = rest;
        Some((header.kind, body))
    })
}

/// The content of the first box with this path of types.
fn find<'a>(row: &'a [u8], path: &[FourCC]) -> Option<&'a [u8]> {
    path.iter().try_fold(row, |row, wanted| {
        boxes(row)
            .find(|(kind, _)| kind == wanted)
            .map(|(_, body)| body)
    })
}

/// The first box of type `T` in the box with this path.
fn decode<T: Atom>(row: &[u8], path: &[FourCC]) -> Option<T> {
    parse(T::KIND, find(find(row, path)?, &[T::KIND])?)
}

/// Decodes a box of type `T`. Readers must accept additional bytes after the known fields.
fn parse<T: Atom>(kind: FourCC, mut body: &[u8]) -> Option<T> {
    (kind == T::KIND).then(|| T::decode_body(&mut body).ok())?
}

fn to_ms(ticks: u64, timescale: u32) -> u64 {
    let (ticks, timescale) = (u128::from(ticks), u128::from(timescale));
    u64::try_from((ticks * 1000 + timescale / 2) / timescale).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_are_rounded() {
        assert_eq!(to_ms(1_442_816, 48_000), 30_059);
        assert_eq!(to_ms(u64::MAX, 1), u64::MAX);
    }
}

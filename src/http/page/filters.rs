//! The filters of the list of videos, which are those of the API.

use serde::Deserialize;

use crate::db::Filter;
use crate::domain::failure::Code;
use crate::domain::state::VideoState;
use crate::http::{Problem, api};

/// The parameters of the list. Empty ones do not filter.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::http) struct Filters {
    pub(super) state: String,
    pub(super) code: String,
    pub(super) q: String,
    pub(super) commit: String,
    pub(super) since: String,
    pub(super) until: String,
    cursor: String,
}

impl Filters {
    /// Whether it is the first page of all videos.
    pub(super) fn is_first_page(&self) -> bool {
        self.pairs().is_empty()
    }

    /// The filter of the database; `None` if the state or the code is unknown, so that no video can match.
    pub(super) fn to_filter(&self) -> Result<Option<Filter>, Problem> {
        let text = |value: &str| Some(value.trim().to_owned()).filter(|text| !text.is_empty());
        let (state, code) = (text(&self.state), text(&self.code));
        let known_state = state.as_deref().and_then(VideoState::parse);
        let known_code = code.as_deref().and_then(Code::parse);
        if state.is_some() != known_state.is_some() || code.is_some() != known_code.is_some() {
            return Ok(None);
        }
        Ok(Some(Filter {
            state: known_state,
            code: known_code,
            q: text(&self.q),
            commit: api::commit("commit", text(&self.commit))?,
            since_ms: api::time("since", text(&self.since))?,
            until_ms: api::time("until", text(&self.until))?,
            cursor: text(&self.cursor),
            limit: None,
        }))
    }

    /// Names and values of the parameters that are not empty.
    fn pairs(&self) -> Vec<(&'static str, &str)> {
        let all = [
            ("state", &self.state),
            ("code", &self.code),
            ("q", &self.q),
            ("commit", &self.commit),
            ("since", &self.since),
            ("until", &self.until),
            ("cursor", &self.cursor),
        ];
        let all = all.into_iter().map(|(name, value)| (name, value.as_str()));
        all.filter(|(_, value)| !value.is_empty()).collect()
    }

    fn url(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        match query.extend_pairs(self.pairs()).finish() {
            query if query.is_empty() => "/".to_owned(),
            query => format!("/?{query}"),
        }
    }

    /// The address of the first page with another state.
    pub(super) fn with_state(&self, state: &str) -> String {
        let (state, cursor) = (state.to_owned(), String::new());
        let mut filters = Self {
            state,
            cursor,
            ..self.clone()
        };
        // Only these two states have codes.
        if !["", "failed", "queued", "waiting"].contains(&filters.state.as_str()) {
            filters.code.clear();
        }
        filters.url()
    }

    /// The address of the next page.
    pub(super) fn next_page(&self, cursor: String) -> String {
        Self {
            cursor,
            ..self.clone()
        }
        .url()
    }

    /// The parameters that the search form keeps.
    pub(super) fn kept(&self) -> Vec<(&'static str, &str)> {
        let mut pairs = self.pairs();
        pairs.retain(|(name, _)| !["q", "cursor"].contains(name));
        pairs
    }

    /// The filters that neither a tab nor the search field shows: name, value, and the address without it.
    pub(super) fn others(&self) -> Vec<(&'static str, &str, String)> {
        let mut pairs = self.pairs();
        pairs.retain(|(name, _)| !["state", "q", "cursor"].contains(name));
        let without = |(name, value)| {
            let mut filters = Self {
                cursor: String::new(),
                ..self.clone()
            };
            match name {
                "code" => filters.code.clear(),
                "commit" => filters.commit.clear(),
                "since" => filters.since.clear(),
                _ => filters.until.clear(),
            }
            (name, value, filters.url())
        };
        pairs.into_iter().map(without).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_keeps_the_other_filters() {
        let filters = Filters {
            state: "failed".into(),
            code: "truncated".into(),
            q: "a b".into(),
            cursor: "1.x".into(),
            ..Filters::default()
        };
        assert_eq!(
            filters.next_page("2.y".into()),
            "/?state=failed&code=truncated&q=a+b&cursor=2.y"
        );
        assert_eq!(filters.with_state("ready"), "/?state=ready&q=a+b");
        assert_eq!(
            filters.others(),
            [("code", "truncated", "/?state=failed&q=a+b".to_owned())]
        );
        assert_eq!(filters.kept(), [("state", "failed"), ("code", "truncated")]);
        assert_eq!(Filters::default().with_state(""), "/");
    }

    #[test]
    fn unknown_values_match_nothing() {
        let state = |state: &str| Filters {
            state: state.into(),
            ..Filters::default()
        };
        assert!(state("nothing").to_filter().unwrap().is_none());
        assert!(state(" ").to_filter().unwrap().unwrap().state.is_none());
        let since = Filters {
            since: "yesterday".into(),
            ..Filters::default()
        };
        assert!(since.to_filter().is_err());
    }
}

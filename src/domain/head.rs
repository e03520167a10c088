//! Whether the head that GitHub's API serves is the branch's head, or an older one.
//!
//! GitHub's API can lag behind its webhooks for some time, and two reads in a row can be served by
//! different replicas. An older head must not replace a newer one, unless the branch really was moved back.

use std::time::Duration;

use super::ids::GitSha;

/// A pushed commit that GitHub's API does not serve is awaited for this long. After that, the served head is
/// accepted, and so is an older head that is served for this long.
pub const AWAITED_FOR: Duration = Duration::from_secs(120);

/// What is known about the branch's head, when one is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heads {
    /// The head that was accepted last.
    pub accepted: Option<GitSha>,
    /// The heads of recent pushes that no accepted head contains yet.
    pub awaited: Vec<GitSha>,
    /// Whether the served head is awaited and pushes led to it from `accepted`, so that it is newer without a
    /// comparison.
    pub follows_accepted: bool,
    /// Whether the served head was accepted before, or another push has replaced it.
    pub is_settled: bool,
    /// Whether another push replaced the served head within [`AWAITED_FOR`]. It may have moved the branch
    /// back to a head that is not awaited, because it is known.
    pub is_replaced: bool,
    /// For how long the served head has been served although it is not newer than `accepted`.
    pub served_for: Duration,
    /// Whether, since the last acceptance, GitHub's API has served a head that was not accepted.
    pub is_any_doubted: bool,
}

/// How the served head relates to another commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The served head is the commit, or contains it.
    Ahead,
    /// Neither contains the other: the branch was force-pushed.
    Diverged,
    /// The commit contains the served head.
    Behind,
    /// GitHub cannot compare them, for example because it does not serve the commit yet.
    Unknown,
}

impl Heads {
    /// The commits with which the served head must be compared, see [`Self::is_newer`].
    pub fn to_compare(&self, served: GitSha) -> Vec<GitSha> {
        let awaited = self.awaited.iter().copied();
        let mut commits: Vec<GitSha> = awaited.filter(|sha| *sha != served).collect();
        if let Some(accepted) = self.accepted
            && accepted != served
            && self.served_for < AWAITED_FOR
            && !self.follows_accepted
        {
            commits.push(accepted);
        }
        commits
    }

    /// Whether accepting the served head would change nothing.
    pub fn is_known(&self, served: GitSha) -> bool {
        self.accepted == Some(served) && self.awaited.is_empty() && !self.is_any_doubted
    }

    /// Whether the served head is newer than a commit of [`Self::to_compare`], or the result of a forced push.
    /// It is the branch's head if this is so for all of them. `is_late`: whether no head was accepted for
    /// [`AWAITED_FOR`], so that commits which GitHub cannot compare are not waited for any longer.
    pub fn is_newer(&self, relation: Relation, is_late: bool) -> bool {
        match relation {
            Relation::Ahead => true,
            // A forced push, unless the served head is the one that it replaced.
            Relation::Diverged => !self.is_settled,
            Relation::Behind => false,
            Relation::Unknown => is_late,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sha(byte: u8) -> GitSha {
        GitSha::from_bytes([byte; 20])
    }

    /// The decision about the head 1 with the accepted head 2 and the awaited head 3.
    fn is_current(heads: &Heads, to_accepted: Relation, to_awaited: Relation) -> bool {
        let relation = |commit| {
            if commit == sha(2) {
                to_accepted
            } else {
                to_awaited
            }
        };
        let mut commits = heads.to_compare(sha(1)).into_iter();
        commits.all(|commit| heads.is_newer(relation(commit), false))
    }

    #[test]
    fn commits_that_cannot_be_compared_are_not_waited_for_without_end() {
        let heads = Heads::default();
        assert!(heads.is_newer(Relation::Unknown, true));
        assert!(!heads.is_newer(Relation::Behind, true));
    }

    #[test]
    fn a_head_must_be_newer_than_all_others_or_result_from_a_forced_push() {
        use Relation::{Ahead, Behind, Diverged, Unknown};
        let fresh = Heads {
            accepted: Some(sha(2)),
            awaited: vec![sha(3)],
            ..Heads::default()
        };
        let settled = Heads {
            is_settled: true,
            ..fresh.clone()
        };
        for relation in [Ahead, Diverged, Behind, Unknown] {
            let expected = relation == Ahead || relation == Diverged;
            assert_eq!(is_current(&fresh, Ahead, relation), expected);
            assert_eq!(is_current(&fresh, relation, Ahead), expected);
            assert_eq!(is_current(&settled, Ahead, relation), relation == Ahead);
            assert_eq!(is_current(&settled, relation, Ahead), relation == Ahead);
        }
    }

    #[test]
    fn the_accepted_head_is_current_unless_another_one_is_awaited() {
        let heads = Heads {
            accepted: Some(sha(1)),
            is_settled: true,
            ..Heads::default()
        };
        assert_eq!(heads.to_compare(sha(1)), []);
        assert!(is_current(&heads, Relation::Unknown, Relation::Unknown));
        let replaced = Heads {
            awaited: vec![sha(3)],
            ..heads
        };
        assert!(!is_current(
            &replaced,
            Relation::Unknown,
            Relation::Diverged
        ));
    }

    #[test]
    fn a_pushed_successor_of_the_accepted_head_needs_no_comparison() {
        let heads = Heads {
            accepted: Some(sha(2)),
            awaited: vec![sha(1)],
            follows_accepted: true,
            ..Heads::default()
        };
        assert_eq!(heads.to_compare(sha(1)), []);
        assert!(is_current(&heads, Relation::Unknown, Relation::Unknown));
        let late = Heads {
            follows_accepted: false,
            ..heads
        };
        assert_eq!(late.to_compare(sha(1)), [sha(2)]);
        assert!(!is_current(&late, Relation::Behind, Relation::Unknown));
    }

    #[test]
    fn an_older_head_is_accepted_once_it_was_served_long_enough() {
        let heads = Heads {
            accepted: Some(sha(2)),
            is_settled: true,
            served_for: AWAITED_FOR,
            ..Heads::default()
        };
        assert!(is_current(&heads, Relation::Behind, Relation::Unknown));
        let pushed = Heads {
            awaited: vec![sha(3)],
            ..heads
        };
        assert!(!is_current(&pushed, Relation::Behind, Relation::Behind));
    }
}

//! A server that receives GitHub push webhooks, verifies the pushed videos and publishes them through
//! Supabase.
//!
//! # Data flow
//!
//! ```text
//! GitHub ─push─▶ http ─▶ domain::{signature, push} ─▶ pipeline::intake ─▶ db: commit ─▶ 202
//!                                                                             │
//!           timer, CLI, POST /reconcile ─▶ pipeline::sweep ─▶ domain::verdict ┤
//!                                                                             │
//!                               a video whose lease or waiting time has ended ┤
//!                                                                             ▼
//! pipeline::worker: claim ─▶ pipeline::ingest: list ─▶ download ─▶ check ─▶ upload ─▶ confirm
//!                                                                             │
//!                                                      db: finish ─▶ the app's row is ready
//! ```
//!
//! A push, a redelivery, a sweep and a retry all call the same function, which requests a video and
//! records the reason. Nothing else starts work. The branch is the source of truth: a webhook only
//! indicates that something changed. Lost, late, repeated and reordered webhooks therefore have the
//! same final result.
//!
//! # Terms
//!
//! - **Row:** a video's row in the app's table `lesson_assets`. It is *pending* until it has a
//!   `storage_path`.
//! - **Record:** our own row for a video, in `video_ingest.videos`. The record is also the job.
//! - **Delivery:** one webhook request, identified by the GUID that GitHub assigned to it.
//! - **Head:** the commit that the branch points to. The *served* head is the one that GitHub's API returns.
//!   It is *accepted* if it is newer than all heads that were pushed or accepted before, or if GitHub's API
//!   has served it for two minutes. A pushed head is *awaited* until it or a newer one is served, but for at
//!   most two minutes.
//! - **Listing:** the head and the files of the videos folder at that commit, each with its blob SHA and
//!   size.
//! - **Sweep:** a comparison of the listing with all records and rows. It requests missing and changed
//!   videos and fails overdue rows. To *reconcile* is to request a sweep, over HTTP or from the command
//!   line.
//! - **Scan:** a check of all videos in the listing, required if the file lists of a delivery may be
//!   incomplete. It requests videos like a sweep does, but never fails a row. One scan serves all deliveries
//!   that were recorded before it began.
//! - **Verdict:** the decision of a sweep or scan about one video, a pure function of listing, record,
//!   row and generation status.
//! - **Claim:** the exclusive right of one worker to process a video, identified by a random token.
//! - **Lease:** the period for which a claim is valid unless the worker renews it.
//!
//! # Modules
//!
//! Imports only point downwards in this table. A test checks this, and the rules in the last column.
//!
//! | module | contents | rule |
//! |---|---|---|
//! | [`cli`] | every command with its flags and its output, and the client of a running server | |
//! | [`app`] | wiring, startup and shutdown | the only module that constructs clients, connection pools and the clock |
//! | [`http`] | router, webhook, API, OpenAPI document, status page with its sign-in, server-sent events, probes, connection limits | |
//! | [`pipeline`] | intake of deliveries; the branch (whether a listing is current); worker (claim, lease, retry); ingest of one video, with the spool that hashes a download and the limits of the buckets; sweep; the checks of `doctor`, the status page and the probes | only `ingest` orders the steps of a video; only `worker` decides whether and when to retry |
//! | [`telemetry`] | logs, and every metric | |
//! | [`services`] | outbound: the shared HTTP client, GitHub (listing, download, LFS, webhooks), storage (Supabase or a folder), OpenHands, the receiver at our own public address | the only module that calls other hosts |
//! | [`db`] | one file per table, pages of videos and deliveries, statistics, migrations | the only module that contains SQL |
//! | [`config`] | table of settings, their sources (flags, environment, `.env`, files) and their rules | the only module that reads the environment |
//! | [`fake_github`] | the fake GitHub of the demo and the tests: repository, REST and LFS API, webhooks | behind the feature `demo` |
//! | [`failpoint`] | points at which tests stop or crash the program | armed only with the feature `fail-points` |
//! | [`domain`] | identifiers, webhook signature, strength of secrets, push payload with its file lists, JSON metadata, MP4 and LFS parsing, OpenHands' statuses, redaction, video states, timeline, plans, verdicts, reports, failure codes with advice, explanations, links | pure: no I/O and no clock |
//! | [`mod@format`], [`clock`] | text for people; the clock | the only source of the current time |
//!
//! # Invariants
//!
//! 1. A 2xx response to a push means that the push is committed.
//! 2. Nothing is recorded before the signature is verified.
//! 3. No transaction is open during a network call.
//! 4. Every write after a claim is fenced by its lease. A publication is also fenced by the row's lesson,
//!    owner and bucket, on which the location of the uploaded object depends.
//! 5. A row becomes ready only after the storage has confirmed the object.
//! 6. The branch is the source of truth: a replayed, late or reordered delivery never restores older
//!    content, nor does an older head that GitHub's API serves.
//! 7. Every step can run twice and can stop at any point.
//! 8. Every buffer, queue, body, wait and retry has a named limit with a unit.
//! 9. A ready video stays available: a failed re-render, a deleted file, or a change of the row's lesson,
//!    owner or bucket does not remove it.
//!
//! For each invariant, `tests/mutations` contains patches that break it, and `tests/mutations.sh` checks
//! that the tests then fail.
//!
//! # Crashes
//!
//! Acknowledged work is committed, and uncommitted work is not acknowledged. An object is visible only
//! when the storage has all of its bytes, and a row becomes ready only after the storage has confirmed
//! the object. A crash can therefore delay a video but cannot lose it.
//!
//! The last column names the fail point or the test in `tests/it` that covers the row.
//! `process::a_crash_at_any_point_is_recovered_by_the_next_start` crashes the server at each fail
//! point. To reproduce a crash, push a video to a server that was started with
//! `FAIL_POINTS=uploaded=abort cargo run --features fail-points -- serve`; builds without that feature have no
//! fail points.
//!
//! <!-- crashes -->
//! | failure | state afterwards | recovery | fail point or test |
//! |---|---|---|---|
//! | server, before the delivery is committed | nothing is recorded; GitHub shows a failed delivery | *Redeliver*, or the next sweep | |
//! | server, after the commit and before the 202 | the video is queued; GitHub shows a failed delivery | the next free worker | |
//! | server, after the 202 | the video is queued | the next free worker on any server | |
//! | worker, after the claim | a lease | any server, after `LEASE` has expired; it counts as an attempt | `claimed` |
//! | worker, after listing the branch | a lease | same as above | `listed` |
//! | worker, after the download | a lease; the spool file has no name and disappears with the process | same as above | `fetched` |
//! | worker, after the checks | a lease; the spool file has no name and disappears with the process | same as above | `checked` |
//! | worker, before or during the upload | a lease; the storage has no object, or the previous one | same as above | `uploading` |
//! | worker, after the last byte of the upload | a lease; the object is new, the row is old | same as above; the object is recognized and not uploaded again | `uploaded` |
//! | worker, after the storage has confirmed the object | a lease; the object is new, the row is old | same as above; the object is recognized and not uploaded again | `stored` |
//! | worker, during the final transaction | all changes or none | same as above, if none were committed | |
//! | worker, after the final transaction | the row is ready | none required | `published` |
//! | worker, stalled beyond its lease, with an upload that completes late | the object may be an older version | the stalled worker requests the video again, and the next attempt compares the object with the branch; otherwise a sweep with `verify=true` | |
//! | storage, completing an upload without a response after a newer one | the object is older than the row | the object is compared again five minutes after the upload and replaced | `late_uploads::an_upload_that_completes_after_a_newer_one_is_replaced` |
//! | server, on SIGTERM | running videos get 20 s to finish and are then handed back | the next free worker | `process::sigterm_hands_back_videos_that_do_not_finish_in_time` |
//! | database unavailable | webhooks get a 503 within 2 s; workers wait | a sweep finds the videos of failed deliveries | `webhook::a_stalled_database_gives_a_503_within_two_seconds` |
//! | `lesson_assets` locked by the app | deliveries are recorded; workers and sweeps wait | the lock is released | `intake::a_lock_on_the_apps_table_does_not_block_deliveries` |
//! | disk of `DATA_DIR` full | no new downloads start; running videos are retried | the operator frees disk space | |
//! | row deleted while its video is processed | the uploaded object is deleted | the worker that uploaded it | `bad_input::deleting_the_row_during_processing_deletes_the_object` |
//! | GitHub or the storage unavailable | videos stay queued | the retry schedule | `bad_input::a_transient_failure_is_given_up_after_a_day` |
//! <!-- /crashes -->
//!
//! # Design decisions
//!
//! **Why is there no message queue?** The record of a video is its job. Delivery and job are committed in
//! one statement, so no job can be lost between two systems. Workers claim records with
//! `FOR UPDATE SKIP LOCKED`; a notification only wakes idle workers earlier than their next poll, after
//! five seconds.
//!
//! **Why are jobs keyed by video and not by push?** The branch decides which content is current. Ten
//! pushes of the same video need one attempt, for the newest content. A request that arrives during an
//! attempt queues the video again.
//!
//! **Why is a served head not always accepted?** GitHub's API can serve an older head for some seconds
//! after a push, and two reads in a row can be served by different replicas. The table `heads` contains the
//! commits that were the head; [`domain::head`] decides whether a served one is newer. If the branch is
//! moved back to an older commit, that commit is therefore accepted only after two minutes.
//!
//! **Why is there no leader election?** Every operation is safe to run twice. Two sweeps at the same time
//! request the same videos, and a claim belongs to exactly one worker.
//!
//! **Why does a lease not protect the storage?** Supabase Storage accepts an upload regardless of our
//! database. Before an upload, the worker renews its lease; after the upload, it compares the object's
//! hash. If a worker loses its lease during an upload, it requests the video again. An upload without a
//! response can complete minutes later, so the object is compared once more after five minutes.
//!
//! **Why are videos downloaded through GitHub's API and not with `git`?** The server needs only the
//! current files of one folder. A clone would download the history of all videos.
//!
//! **Why is a video checked completely before the upload begins?** The upload carries the SHA-256 of the
//! file as metadata, and a broken file must never be visible. This costs up to a factor of two in
//! transfer time for large files; see the benchmarks in `tests/README.md`.
//!
//! **Why are there no resumable uploads (TUS, S3 multipart)?** A single upload is visible completely or
//! not at all, so there is no partial state to track or to clean up. A failed upload is repeated from the
//! start.
//!
//! **Why is the body of a delivery not stored?** It can contain anything, and it is not needed: the
//! branch contains the current files.
//!
//! **Why are there two databases?** SQLite lets users try the server and run the tests without an
//! account. Every scenario runs on SQLite and on Postgres.
//!
//! **Why is SQL not checked at compile time?** The same statements run on SQLite and on Postgres, and
//! sqlx's macros check a query against only one database. The scenarios execute every statement on both.
//!
//! **Why are there so few traits?** A trait is added when a second implementation exists. The tests
//! replace GitHub, the storage and OpenHands with fakes that speak HTTP, so the real clients are tested
//! as well.

#![forbid(unsafe_code)]
#![warn(missing_docs, clippy::unwrap_used)]

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod db;
pub mod domain;
pub mod failpoint;
#[cfg(feature = "demo")]
pub mod fake_github;
pub mod format;
pub mod http;
pub mod pipeline;
pub mod services;
pub mod telemetry;

//! From a signed GitHub push to a playable video.
//!
//! The data's way is the file list:
//!
//! ```text
//! GitHub ─push─▶ http::webhook ─▶ domain::{signature, push} ─▶ intake ─▶ db::record ─▶ 202
//!                                                                            │
//!            timer, CLI, POST /reconcile ─▶ sweep ─▶ domain::verdict ─▶ db::request
//!                                                                  │
//! worker: claim ─▶ ingest: github ─▶ spool ─▶ domain::{mp4, metadata} ─▶ store ─▶ db::finish ─▶ row ready
//! ```
//!
//! # Invariants
//!
//! 1. A 2xx to a push means committed.
//! 2. Nothing is recorded before the signature holds.
//! 3. No transaction is open across a network call.
//! 4. Every write after a claim is fenced by its lease.
//! 5. A row becomes ready only after the stored object was confirmed.
//! 6. A webhook is a hint, the branch is the truth: a replayed, late or reordered delivery never
//!    brings older bytes back.
//! 7. Any step can run twice and stop anywhere.
//! 8. Every buffer, queue, body, wait and retry has a named limit with its unit.
//!
//! Each has a test in `tests/it` that fails when a line that upholds it is broken.
//!
//! # Rooms
//!
//! What a line may touch follows from where it is: SQL only in [`db`], the environment only in
//! [`config`], constructors of clients only in [`app`], the order of a video's steps only in
//! [`ingest`], whether and when to try again only in [`worker`], and nothing but values in [`domain`].

#![forbid(unsafe_code)]
#![warn(missing_docs, clippy::unwrap_used)]

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod db;
pub mod domain;
pub mod failpoint;
pub mod fake_github;
pub mod format;
pub mod http;
pub mod pipeline;
pub mod services;
pub mod telemetry;

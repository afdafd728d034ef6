//! weir decides, many thousands of times a second, whether a request may pass, and speaks Envoy's rate limit protocol.
//!
//! A call goes one way through the house, and nothing calls back:
//!
//! ```text
//! proto bytes ─▶ service ─▶ rules: which limits? ─▶ charges ─▶ limiter ─▶ store ─▶ decision ─▶ service ─▶ proto bytes
//! ```
//!
//! - [`rules`] turns YAML files into a tree, and the descriptors of a request into the rules that apply. Pure.
//! - [`bucket`] is the arithmetic of a token bucket: functions of (state, limit, hits, now). Pure.
//! - [`decision`] holds the plain types between the parts, and the rule of all or nothing. Pure.
//! - [`store`] keeps buckets, in memory or in Redis; [`limiter`] is who decides where a request is decided.
//! - [`service`] is the only part that knows the protocol of [`proto`], [`clock`] the only one that reads the time.
//! - [`serve`] holds the listeners and their connections, within bounds. Calls are answered on threads of their own, about one
//!   for each core; each has a runtime, and the connections that it was dealt. All else is on another runtime: what is asked
//!   over HTTP, rules that are read, connections to Redis.
//! - [`http`] answers what is not gRPC: probes, metrics, the rules in force, decisions as JSON.
//! - [`app`] wires it all from [`settings`], serves and drains; [`cli`] is the command line, [`telemetry`] what weir tells
//!   of itself. `load` is the load that `weir load` puts on a server.
//!
//! Dependencies point inward: `bucket` ← `decision` ← `store` ← `limiter` ← `service` ← `app`; `rules` knows none of
//! the stores.

pub mod app;
pub mod breaker;
pub mod bucket;
pub mod cli;
pub mod clock;
pub mod decision;
pub mod http;
pub mod limiter;
mod load;
mod pem;
pub mod proto;
pub mod rules;
pub mod serve;
pub mod service;
pub mod settings;
pub mod store;
pub mod telemetry;

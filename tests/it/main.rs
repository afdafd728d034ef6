//! Everything that is tested from outside: one binary, one module a concern.
#![cfg(test)]

mod support {
    pub(crate) mod certificates;
    pub(crate) mod collector;
    pub(crate) mod envoy;
    pub(crate) mod frames;
    pub(crate) mod http;
    pub(crate) mod proxy;
    pub(crate) mod python;
    pub(crate) mod redis;
    pub(crate) mod server;
    pub(crate) mod steady;
    pub(crate) mod weir;
}

mod algorithms;
mod cluster;
mod command;
mod deploy;
mod envoy;
mod exact;
mod examples;
mod faults;
mod fuzz;
mod http;
mod load;
mod logs;
mod protocol;
mod redis;
mod reload;
mod replies;
mod sentinel;
mod serving;
mod shipped;
mod stores;
mod telemetry;
mod tiers;
mod tls;
mod wire;

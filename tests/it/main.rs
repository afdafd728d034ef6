//! Everything that is tested from outside: one binary, one module a concern.
#![cfg(test)]

mod support {
    pub(crate) mod envoy;
    pub(crate) mod python;
    pub(crate) mod redis;
    pub(crate) mod server;
    pub(crate) mod weir;
}

mod cluster;
mod command;
mod envoy;
<<<<<<< HEAD
mod exact;
=======
mod examples;
>>>>>>> 356bc49 (Ready rule sets for logins, shared secrets and language models, each tried out by a test)
mod fuzz;
mod protocol;
mod redis;
mod reload;
mod sentinel;
mod serving;
mod shipped;
mod tiers;
mod wire;

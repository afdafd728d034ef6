//! Everything that is tested from outside: one binary, one module a concern.
#![cfg(test)]

mod support {
    pub(crate) mod python;
    pub(crate) mod server;
}

mod fuzz;
mod protocol;
mod shipped;
mod wire;

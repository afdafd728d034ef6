//! Which stores in Redis rules may name, as far as the command line says so.

use crate::rules::{LoadError, RuleSet};

/// What a server is told by `--redis-store`, without asking any Redis.
#[derive(Debug, clap::Args)]
pub(super) struct Stores {
    /// A store that a domain may name by `redis:`; may be given several times. Without any, they may name what they like
    ///
    /// A URL behind the name, as `serve` has it, is passed over.
    #[arg(
        long,
        env = "WEIR_REDIS_STORE",
        value_name = "NAME[=URL]",
        hide_env_values = true,
        value_delimiter = ' ',
        value_parser = name
    )]
    redis_store: Vec<String>,
}

/// A store's name. What stands behind it may hold a password, which no message is to show.
#[allow(clippy::unnecessary_wraps, reason = "what clap wants of a parser")]
fn name(text: &str) -> Result<String, std::convert::Infallible> {
    Ok(text.split_once('=').map_or(text, |(name, _)| name).to_owned())
}

impl Stores {
    /// Whether anything is known of them.
    pub(super) fn are_known(&self) -> bool {
        !self.redis_store.is_empty()
    }

    /// Refuses rules that name another one.
    ///
    /// # Errors
    /// As [`RuleSet::in_stores`].
    pub(super) fn check(&self, set: RuleSet) -> Result<RuleSet, LoadError> {
        if self.are_known() { set.in_stores(&self.redis_store) } else { Ok(set) }
    }
}

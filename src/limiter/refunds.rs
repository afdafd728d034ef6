//! What denied requests have taken in some parts, on its way back.
//!
//! It is given back in the background, and tried again while it is certain that it has not arrived. Where that is not
//! known it is left as it is, for what is given back twice would admit too much; it is counted, and said once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::denials::Denials;
use super::parts::Refund;
use crate::clock;
use crate::store::{Failure, RedisStore};

/// Refunds that are on their way at a time; more are not given back.
pub(super) const MOST: usize = 1_000;

/// Pauses before each attempt.
const PAUSES: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(50), Duration::from_millis(250), Duration::from_secs(1)];

/// How long an attempt may take: nobody waits for it.
const ATTEMPT: Duration = Duration::from_secs(1);

/// Gives back what denied requests have taken.
#[derive(Debug, Default)]
pub(super) struct Refunds {
    under_way: AtomicUsize,
    lost: AtomicU64,
}

impl Refunds {
    /// Gives back in the background. Must be called within a tokio runtime.
    pub(super) fn give_back(
        self: &Arc<Self>,
        refund: Refund,
        redis: &Arc<RedisStore>,
        denials: &Arc<Denials>,
    ) {
        if self.under_way.fetch_add(1, Ordering::Relaxed) >= MOST {
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            self.lose("too many are under way");
            return;
        }
        let (this, redis, denials) = (Arc::clone(self), Arc::clone(redis), Arc::clone(denials));
        tokio::spawn(async move {
            let giving_back = denials.giving_back(&refund.charges);
            if let Err(error) = attempt(&refund, &redis).await {
                this.lose(&error);
            }
            drop(giving_back);
            this.under_way.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// Refunds that are on their way.
    pub(super) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    /// Refunds that did not arrive, as far as is known.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn lose(&self, error: &str) {
        if self.lost.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                error,
                "what a denied request took from buckets in one part could not be given back; said once, and counted"
            );
        }
    }
}

async fn attempt(refund: &Refund, redis: &RedisStore) -> Result<(), String> {
    let mut said = String::new();
    for pause in PAUSES {
        tokio::time::sleep(pause).await;
        let Some(part) = refund.names.first().map(|name| redis.part_of(name)) else { return Ok(()) };
        let names = refund.names.iter().cloned();
        let error = match redis.decide(part, &refund.charges, names, clock::instant() + ATTEMPT).await {
            Ok(_) => return Ok(()),
            Err(Failure { pending: Some(pending), .. }) => match pending.outcome().await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            },
            Err(Failure { error, .. }) => error,
        };
        said = error.to_string();
        if error.may_have_landed() {
            break;
        }
    }
    Err(said)
}

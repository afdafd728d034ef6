//! What becomes of calls that a node of a Cluster does not decide, because their slot is elsewhere or on its way.
//!
//! A slot that has moved is followed, with the note of its batch: the note is in the same slot, so a batch is not applied
//! twice there either. While a slot moves, its keys are in two places, and a script that names a key which is there and
//! one which is not is refused by both. So the calls of such a batch are decided bucket by bucket, each where it is, by
//! scripts that name nothing else; without a note, they are not sent again when a connection breaks. A request for several
//! buckets cannot be decided so: it is told that its slot moves.

use std::collections::HashMap;
use std::sync::Arc;

use redis::{Pipeline, RedisError, ServerErrorKind, Value};
use smallvec::SmallVec;

use super::{Group, Lane, Link, Live, Node};
use crate::clock;
use crate::store::redis::cluster::Shared;
use crate::store::redis::script::{self, How};
use crate::store::redis::trouble::{class, kind};
use crate::store::{Class, StoreError};

/// The node that has a bucket, and whether it has to be asked for what is still on its way to it.
type Place = (Arc<Node>, bool);

/// How often a call is sent on.
const MOST: usize = 5;

/// Batches that may be under way at a node at a time that were sent on to it. Of more, the calls are decided here.
pub(super) const FOLLOWED: usize = 64;

/// Where a node of a Cluster says that a call should have gone.
pub(super) enum Elsewhere {
    /// The slot is there by now.
    Moved(String),
    /// The slot is on its way, and one of the keys is not here.
    Moving,
}

impl Elsewhere {
    /// Reads an error.
    pub(super) fn of(error: &RedisError, live: &Live) -> Option<Self> {
        match kind(error)? {
            ServerErrorKind::Moved => Some(Self::Moved(named(error, live)?)),
            ServerErrorKind::Ask | ServerErrorKind::TryAgain => Some(Self::Moving),
            _ => None,
        }
    }
}

/// The address in an error. A node that does not know another's host leaves it out: it is its own then.
fn named(error: &RedisError, live: &Live) -> Option<String> {
    let (address, _) = error.redirect_node()?;
    match (address.strip_prefix(':'), live.address.host()) {
        (Some(port), Some(host)) => Some(format!("{host}:{port}")),
        _ => Some(address.to_owned()),
    }
}

/// That a slot moves, in the words that Redis has for it.
fn moving() -> StoreError {
    StoreError::Refused { class: Class::Moving, said: "the slot of this request is being moved".into() }
}

impl Node {
    /// Follows groups of a lane's batch to where they belong, by tasks of their own: a lane does not wait for another
    /// node, and how long that takes is that node's affair. `hops` counts how often they were sent on before.
    pub(super) fn follow(
        self: &Arc<Self>,
        cluster: &Arc<Shared>,
        lane: &Lane,
        groups: SmallVec<[(Elsewhere, Group); 1]>,
        hops: usize,
        maybe_decided: bool,
    ) {
        let mut moved: HashMap<String, SmallVec<[Group; 1]>> = HashMap::new();
        let mut singly = Vec::new();
        let now = clock::instant();
        for (elsewhere, group) in groups {
            match elsewhere {
                _ if group.deadline <= now => {
                    group.fail(if maybe_decided { &StoreError::Lost } else { &StoreError::Unsent });
                }
                Elsewhere::Moved(address) if hops < MOST => {
                    cluster.may_be_stale();
                    moved.entry(address).or_default().push(group);
                }
                Elsewhere::Moved(_) => group.fail(&moving()),
                // Sent before, and nobody knows whether it was decided: only its note could tell, which has moved on.
                Elsewhere::Moving if maybe_decided => group.fail(&StoreError::Lost),
                Elsewhere::Moving => singly.extend(group.singly(&moving())),
            }
        }
        for (address, groups) in moved {
            let node = cluster.node_at(&address);
            let place =
                node.and_then(|node| Some((Arc::clone(&node.followed).try_acquire_owned().ok()?, node)));
            match place {
                Some((_, node)) if !node.breaker.is_closed() => {
                    groups.into_iter().for_each(|group| group.fail(&StoreError::Open));
                }
                Some((place, node)) => {
                    let lane = lane.as_it_is();
                    tokio::spawn(async move {
                        node.exchange_in_time(&lane, groups, hops + 1).await;
                        drop(place);
                    });
                }
                None => groups.into_iter().for_each(|group| group.fail(&moving())),
            }
        }
        if !singly.is_empty() {
            match Arc::clone(&self.followed).try_acquire_owned() {
                Ok(place) => {
                    let (node, cluster) = (Arc::clone(self), Arc::clone(cluster));
                    tokio::spawn(async move {
                        node.decide_singly(&cluster, singly).await;
                        drop(place);
                    });
                }
                Err(_) => singly.into_iter().for_each(|group| group.fail(&moving())),
            }
        }
    }

    /// Decides groups of one bucket each, wherever that is, without notes.
    async fn decide_singly(&self, cluster: &Shared, groups: Vec<Group>) {
        let mut open: Vec<(Option<Place>, Vec<Group>)> = vec![(None, groups)];
        for _ in 0..MOST {
            let mut next: HashMap<(String, bool), Vec<Group>> = HashMap::new();
            for (place, groups) in open {
                let (node, asking) =
                    place.as_ref().map_or((self, false), |(node, asking)| (&**node, *asking));
                let Some((link, live)) = node.any_link() else {
                    let error = node.disconnected();
                    groups.into_iter().for_each(|group| group.fail(&error));
                    continue;
                };
                let replies = match node.send_singly(&live, &groups, asking).await {
                    Some(Ok(replies)) => replies,
                    lost => {
                        if let Some(Err(error)) = lost {
                            link.found_broken(&live, &error);
                        }
                        groups.into_iter().for_each(|group| group.fail(&StoreError::Lost));
                        continue;
                    }
                };
                let mut replies = replies.into_iter();
                for group in groups {
                    match replies.next().map(Value::extract_error) {
                        Some(Ok(reply)) => _ = node.answer(group, reply, &live),
                        Some(Err(error)) => match (kind(&error), named(&error, &live)) {
                            (Some(ServerErrorKind::Ask), Some(address)) => {
                                next.entry((address, true)).or_default().push(group);
                            }
                            (Some(ServerErrorKind::Moved), Some(address)) => {
                                cluster.may_be_stale();
                                next.entry((address, false)).or_default().push(group);
                            }
                            _ => node.fail_singly(group, link, &live, &error),
                        },
                        None => group.fail(&StoreError::Lost),
                    }
                }
            }
            open = Vec::new();
            for ((address, asking), groups) in next {
                match cluster.node_at(&address) {
                    Some(node) => open.push((Some((node, asking)), groups)),
                    None => groups.into_iter().for_each(|group| group.fail(&moving())),
                }
            }
            if open.is_empty() {
                return;
            }
        }
        open.into_iter().flat_map(|(_, groups)| groups).for_each(|group| group.fail(&moving()));
    }

    fn fail_singly(&self, group: Group, link: &Link, live: &Arc<Live>, error: &RedisError) {
        if class(error).condemns() {
            link.found_broken(live, error);
        } else if kind(error) != Some(ServerErrorKind::TryAgain) {
            self.refused(live, error);
        }
        group.fail(&StoreError::from(error));
    }

    /// The replies to groups without notes, in one round trip; none when the connection is given up first. Where it is
    /// asked for, each is decided on a slot that is still on its way to the node.
    async fn send_singly(
        &self,
        live: &Live,
        groups: &[Group],
        asking: bool,
    ) -> Option<Result<Vec<Value>, RedisError>> {
        let mut gone = live.gone();
        let mut connection = live.connection.clone();
        let mut pipeline = Pipeline::new();
        for (index, group) in groups.iter().enumerate() {
            if asking {
                pipeline.add_command(redis::cmd("ASKING"));
            }
            // The first brings the script along, and those behind it find it.
            let how = if index == 0 { How::Source(script::DECIDE) } else { How::Hash(&self.hash) };
            pipeline.add_command(group.batch.command(how, None));
        }
        let replies = tokio::select! {
            biased;
            replies = connection.send_packed_commands(&pipeline, 0, pipeline.len()) => replies,
            _ = gone.wait_for(|gone| *gone) => return None,
        };
        let each = if asking { 2 } else { 1 };
        Some(replies.map(|replies| replies.into_iter().skip(each - 1).step_by(each).collect()))
    }
}

//! Every interleaving of two instances, one refresh token, an issuer that ends a family on reuse, and a
//! Redis that fails, recovers and loses its data; with requests, a logout and a crash at any moment.
//!
//! The decisions are the gateway's own functions. The Redis scripts are modelled here as briefly as
//! possible.

use std::collections::{HashMap, HashSet, VecDeque};

use super::super::*;

/// The instance that received the session's tokens, and another.
const GATEWAYS: [usize; 2] = [0, 1];
const LEASE: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
struct World {
    store: Store,
    issuer: Issuer,
    gateways: [Gateway; 2],
    /// The first access token has expired.
    ended: bool,
    crashed: bool,
    /// Redis has lost its data, once.
    lost_data: bool,
    logged_out: bool,
}

#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
struct Store {
    phase: Phase,
    lease: Option<usize>,
    started: Option<usize>,
    /// The result of the refresh token is stored.
    record: bool,
    over: bool,
}

#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
enum Phase {
    #[default]
    Settled,
    /// Reachable again; every instance is publishing.
    Back,
    /// Reachable and empty: it has lost its data, and every instance is publishing.
    Restoring,
    Away,
    /// Unreachable for longer than any lock lasts.
    LongAway,
}

#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
struct Issuer {
    redeemed: u8,
    /// The family was ended because a token was reused.
    killed: bool,
    revoked: bool,
}

#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
struct Gateway {
    at: At,
    elsewhere: bool,
    /// The instance knows that the session has ended.
    over: bool,
    /// The instance has yet to record in Redis that the session has ended.
    owes_end: bool,
}

#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
enum At {
    #[default]
    Idle,
    /// A request needs new tokens.
    Asking,
    /// The refresh token is on its way to the issuer.
    Redeeming,
    /// The issuer has redeemed it, and the response is on its way.
    Redeemed {
        granted: bool,
    },
    /// New tokens, not yet published to Redis.
    Publishing,
    /// New tokens.
    New,
    /// Refused, or the session has ended.
    Over,
    Dead,
}

/// Takes the changes that may come next.
type Add<'a> = &'a mut dyn FnMut(&dyn Fn(&mut World));

impl World {
    fn condition(&self) -> Condition {
        match self.store.phase {
            // Without a lost connection, a loss is not noticed at once.
            Phase::Settled | Phase::Restoring => Condition::Usable(PUBLISH_GRACE),
            Phase::Back => Condition::Usable(Duration::ZERO),
            Phase::Away => Condition::Unusable(Duration::ZERO),
            Phase::LongAway => Condition::Unusable(alone_after(LEASE)),
        }
    }

    fn is_reachable(&self) -> bool {
        matches!(self.store.phase, Phase::Settled | Phase::Back | Phase::Restoring)
    }

    /// The script `ACQUIRE_LOCK`.
    fn take(&mut self, me: usize) -> LockResponse {
        let store = &mut self.store;
        match store.lease {
            _ if store.over => LockResponse::Ended,
            _ if store.record => LockResponse::Refreshed,
            _ if store.phase == Phase::Restoring => LockResponse::NoResponse,
            Some(other) if other != me => LockResponse::Held,
            _ => {
                store.lease = Some(me);
                if *store.started.get_or_insert(me) == me {
                    LockResponse::Acquired
                } else {
                    LockResponse::AcquiredAfterExpiry
                }
            }
        }
    }

    /// The script `COMPLETE_REFRESH`; `false` if the session has ended meanwhile.
    fn finish(&mut self, me: usize, renewed: bool) -> bool {
        let store = &mut self.store;
        store.lease = store.lease.filter(|owner| *owner != me);
        if renewed || store.started == Some(me) {
            store.started = None;
        }
        if renewed && store.over {
            return false;
        }
        store.record |= renewed;
        true
    }

    /// Publishes the result of an instance, if Redis is reachable.
    fn publish(&mut self, me: usize) {
        self.gateways[me].at = if !self.is_reachable() {
            At::Publishing
        } else if self.finish(me, true) && !self.gateways[me].over {
            At::New
        } else {
            self.issuer.revoked = true;
            At::Over
        };
    }

    /// Returns all possible next states.
    fn next(&self) -> Vec<Self> {
        let mut next = Vec::new();
        let mut add = |change: &dyn Fn(&mut Self)| {
            let mut world = *self;
            change(&mut world);
            if world != *self {
                next.push(world);
            }
        };
        add(&|world| world.ended = true);
        match self.store.phase {
            Phase::Settled => {
                add(&Self::go_away);
                if !self.lost_data {
                    add(&Self::lose_data);
                }
            }
            Phase::Back | Phase::Restoring => {
                add(&Self::go_away);
                add(&Self::settle);
            }
            Phase::Away | Phase::LongAway => {
                add(&|world| world.store.phase = Phase::Back);
                // A granted lock is released, and its result published, before Redis is away for longer than a lock lasts.
                let has_turn = |gateway: &Gateway| {
                    matches!(gateway.at, At::Redeeming | At::Redeemed { .. } | At::Publishing)
                };
                if !self.gateways.iter().any(has_turn) {
                    add(&|world| {
                        world.store.phase = Phase::LongAway;
                        world.store.lease = None;
                    });
                }
            }
        }
        // Its owner extends it while redeeming.
        if let Some(owner) = self.store.lease
            && !matches!(self.gateways[owner].at, At::Redeeming | At::Redeemed { .. })
        {
            add(&|world| world.store.lease = None);
        }
        for me in GATEWAYS {
            self.next_at(me, &mut add);
        }
        next
    }

    /// Results have been received by then: instances read ten times a second.
    fn go_away(&mut self) {
        for gateway in &mut self.gateways {
            gateway.elsewhere |= self.store.record;
        }
        self.store.phase = Phase::Away;
    }

    /// An instance publishes again what it knows.
    fn lose_data(&mut self) {
        for gateway in &mut self.gateways {
            gateway.owes_end |= gateway.over;
            gateway.elsewhere |= self.store.record;
        }
        self.store = Store { phase: Phase::Restoring, ..Store::default() };
        self.lost_data = true;
    }

    /// Each live instance has published: it extends its lock, or publishes its result.
    fn settle(&mut self) {
        for me in GATEWAYS {
            let Gateway { at, owes_end, .. } = self.gateways[me];
            if owes_end && at != At::Dead {
                self.store.over = true;
                self.gateways[me].owes_end = false;
            }
        }
        for me in GATEWAYS {
            match self.gateways[me].at {
                At::Redeeming | At::Redeemed { .. } => {
                    if self.store.lease.is_none() {
                        self.store.lease = Some(me);
                    }
                    self.store.started.get_or_insert(me);
                }
                At::Publishing => self.publish(me),
                At::New => self.store.record = true,
                _ => {}
            }
        }
        self.store.phase = Phase::Settled;
    }

    fn next_at(&self, me: usize, add: Add<'_>) {
        let Gateway { at, over, .. } = self.gateways[me];
        if at == At::Dead {
            return;
        }
        if !self.crashed {
            add(&|world| {
                world.crashed = true;
                world.gateways[me] = Gateway { at: At::Dead, ..Gateway::default() };
            });
        }
        if !self.logged_out {
            add(&|world| {
                world.logged_out = true;
                world.issuer.revoked = true;
                world.gateways[me].over = true;
                if world.is_reachable() {
                    world.store.over = true;
                } else {
                    world.gateways[me].owes_end = true;
                }
            });
        }
        // The revocation stream.
        if self.store.phase == Phase::Settled && self.store.over {
            add(&|world| world.gateways[me].over = true);
        }
        match at {
            At::Idle if !over => add(&|world| world.gateways[me].at = At::Asking),
            At::Asking => Self::next_asking(me, add),
            At::Redeeming => add(&|world| {
                let Issuer { redeemed, killed, revoked } = &mut world.issuer;
                let granted = *redeemed == 0 && !*killed && !*revoked;
                *killed |= *redeemed > 0 && !*revoked;
                *redeemed += u8::from(!*revoked);
                world.gateways[me].at = At::Redeemed { granted };
            }),
            At::Redeemed { granted: true } => add(&|world| world.publish(me)),
            At::Redeemed { granted: false } => add(&|world| {
                if world.is_reachable() {
                    world.finish(me, false);
                }
                world.gateways[me].at = At::Over;
            }),
            At::Publishing if self.is_reachable() => add(&|world| world.publish(me)),
            At::New if over => add(&|world| world.gateways[me].at = At::Over),
            At::Idle | At::Publishing | At::New | At::Over | At::Dead => {}
        }
    }

    /// Adds each possible outcome of asking Redis for the lock.
    fn next_asking(me: usize, add: Add<'_>) {
        for (received, patient) in [(true, true), (true, false), (false, true), (false, false)] {
            add(&|world| {
                let mut response = LockResponse::NoResponse;
                if may_ask(world.condition()) {
                    // The script has run, and the response may get lost.
                    let given = world.take(me);
                    response = if received { given } else { LockResponse::NoResponse };
                }
                let gateway = &mut world.gateways[me];
                match response {
                    LockResponse::Held => gateway.elsewhere = true,
                    LockResponse::Refreshed | LockResponse::Ended | LockResponse::Acquired => {
                        gateway.elsewhere = false;
                    }
                    LockResponse::AcquiredAfterExpiry | LockResponse::NoResponse => {}
                }
                let elsewhere = gateway.elsewhere;
                let id = |gateway: usize| gateway as u64 + 1;
                let members = GATEWAYS.map(id);
                let step = next_step(&RefreshKnowledge {
                    need: if world.ended { RefreshNeed::Ended } else { RefreshNeed::Serves },
                    response,
                    store: world.condition(),
                    elsewhere,
                    chosen: is_chosen(id(me), id(0), &members, |_| [0; 32]),
                    patient,
                    lease: LEASE,
                });
                world.gateways[me].at = match step {
                    RefreshStep::Share if world.gateways[me].over => At::Over,
                    RefreshStep::Share => At::New,
                    RefreshStep::End => At::Over,
                    RefreshStep::Redeem | RefreshStep::RedeemAlone => At::Redeeming,
                    RefreshStep::LookAgain => At::Asking,
                    RefreshStep::GiveUp => {
                        if world.is_reachable() && world.store.lease == Some(me) {
                            world.finish(me, false);
                        }
                        At::Idle
                    }
                };
            });
        }
    }
}

/// All reachable states.
struct Worlds {
    /// Each with its successors.
    next: HashMap<World, Vec<World>>,
    /// Each with its first predecessor.
    came_of: HashMap<World, World>,
}

impl Worlds {
    fn explore() -> Self {
        let first = World::default();
        let mut worlds = Self { next: HashMap::new(), came_of: HashMap::from([(first, first)]) };
        let mut open = VecDeque::from([first]);
        while let Some(world) = open.pop_front() {
            let next = world.next();
            for next in &next {
                worlds.came_of.entry(*next).or_insert_with(|| {
                    open.push_back(*next);
                    world
                });
            }
            worlds.next.insert(world, next);
        }
        worlds
    }

    /// Returns the path to `world` as text.
    fn story(&self, world: &World) -> String {
        let mut story = vec![format!("{world:?}")];
        let mut world = world;
        while self.came_of[world] != *world {
            world = &self.came_of[world];
            story.push(format!("{world:?}"));
        }
        story.reverse();
        story.join("\n")
    }
}

#[test]
fn two_instances_redeem_once_and_lose_no_logout_in_any_interleaving() {
    let worlds = Worlds::explore();
    assert!(worlds.next.len() > 1_000, "{} worlds", worlds.next.len());
    for (world, next) in &worlds.next {
        let story = || worlds.story(world);
        let World { store, issuer, gateways, ended, crashed, lost_data, logged_out } = world;
        // One redemption; a second one only after a crash has lost the result of the first.
        assert!(issuer.redeemed < 2 || *crashed, "redeemed twice: {}", story());
        // Redis has lost who began a refresh, and was killed in it.
        let forgotten = *crashed && *lost_data;
        assert!(
            !issuer.killed || *ended || forgotten,
            "a family was killed while its access token was valid: {}",
            story()
        );
        assert!(!issuer.killed || *crashed, "a family was killed: {}", story());
        // A logout wins over everything under way, at the latest when Redis has settled.
        if *logged_out {
            assert!(issuer.revoked, "{}", story());
            let owed = gateways.iter().any(|gateway| gateway.owes_end);
            assert!(store.over || owed || *crashed, "a logout was lost: {}", story());
            for before in next {
                let came =
                    |me: usize| gateways[me].at != At::New && before.gateways[me].at == At::New;
                let late =
                    store.phase == Phase::Settled && store.over && GATEWAYS.into_iter().any(came);
                assert!(!late, "a session came back to life: {}", story());
            }
        }
    }
}

#[test]
fn two_instances_reach_the_new_tokens_from_every_state() {
    let worlds = Worlds::explore();
    let calm = |world: &World| !world.crashed && !world.logged_out;
    let mut before: HashMap<World, Vec<World>> = HashMap::new();
    for (world, next) in worlds.next.iter().filter(|(world, _)| calm(world)) {
        for next in next.iter().filter(|next| calm(next)) {
            before.entry(*next).or_default().push(*world);
        }
    }
    let good =
        |world: &&World| calm(world) && world.gateways.iter().all(|gateway| gateway.at == At::New);
    let mut reach: HashSet<World> = worlds.next.keys().filter(good).copied().collect();
    let mut open: Vec<World> = reach.iter().copied().collect();
    while let Some(world) = open.pop() {
        for earlier in before.get(&world).into_iter().flatten() {
            if reach.insert(*earlier) {
                open.push(*earlier);
            }
        }
    }
    for world in worlds.next.keys().filter(|world| calm(world)) {
        assert!(reach.contains(world), "no way leads to the new tokens: {}", worlds.story(world));
    }
}

#[test]
fn without_redis_only_the_home_of_a_session_redeems_an_expired_token() {
    let away = Store { phase: Phase::LongAway, ..Store::default() };
    let mut alone = [false; 2];
    for world in Worlds::explore().next.keys().filter(|world| world.store == away && !world.crashed)
    {
        for me in GATEWAYS.into_iter().filter(|me| world.gateways[*me].at == At::Redeeming) {
            assert!(world.ended);
            alone[me] = true;
        }
    }
    assert_eq!(alone, [true, false]);
}

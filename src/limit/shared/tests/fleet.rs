//! Gateways that share a store in memory.

use super::*;
use crate::limit::Question;

/// Gateways that share a store, and one clock.
pub(super) struct Fleet {
    pub(super) model: Arc<ReferenceStore>,
    pub(super) clock: Clock,
    pub(super) settings: Settings,
    /// The route's other limits.
    pub(super) others: Vec<Settings>,
    pub(super) gateways: Vec<Gateway>,
    pub(super) next: u32,
    /// The value of every claim of the caller.
    pub(super) plan: serde_json::Value,
    /// The last part of the caller's address.
    pub(super) host: u8,
    /// The milliseconds until the gateways' heartbeats notice a loss of data; `None` without one.
    heartbeat: Option<u64>,
}

/// One gateway of a fleet.
pub(super) struct Gateway {
    pub(super) route: RouteLimits,
    pub(super) limiter: Arc<Limiter>,
    pub(super) metrics: Metrics,
    pub(super) registry: LimitRegistry,
    pub(super) store: Option<Arc<LimitStore>>,
    /// The error of its calendar, in seconds.
    pub(super) skew: i64,
}

impl Fleet {
    pub(super) fn new(count: usize, settings: Settings) -> Self {
        Self::with_others(count, settings, Vec::new())
    }

    pub(super) fn with_others(count: usize, mut settings: Settings, others: Vec<Settings>) -> Self {
        if settings.store == Store::Local {
            settings.store = Store::Redis { exact: false, on_error: OnStoreError::Local };
        }
        let model = ReferenceStore::new(STORE_TIME);
        model.gateways.store(count, Relaxed);
        let clock = Clock::manual(Timestamp::from_nanos(to_epoch_nanos(STORE_TIME)));
        let (gateways, plan) = (Vec::new(), serde_json::Value::Null);
        let mut fleet = Self {
            model,
            clock,
            settings,
            others,
            gateways,
            next: 0,
            plan,
            host: 1,
            heartbeat: None,
        };
        fleet.gateways = (0..count).map(|_| fleet.gateway()).collect();
        fleet
    }

    pub(super) fn gateway(&mut self) -> Gateway {
        self.next += 1;
        let metrics = Metrics::new(&[]);
        let connection = ReferenceConnection { model: Arc::clone(&self.model), me: self.next };
        let store = LimitStore::with_backend(Box::new(connection), &self.clock, &metrics);
        let registry = LimitRegistry::default();
        registry.share(Some(Arc::clone(&store)));
        let limiter =
            |settings: &Settings| Arc::new(Limiter::new(settings.clone(), &registry, &metrics));
        let mut limiters = vec![limiter(&self.settings)];
        limiters.extend(self.others.iter().map(limiter));
        let route = RouteLimits::new(&limiters, "orders", &metrics);
        let limiter = limiters.swap_remove(0);
        Gateway { route, limiter, metrics, registry, store: Some(store), skew: 0 }
    }

    /// Returns how much of its lease a gateway has not used.
    pub(super) fn unused(&self, gateway: usize) -> usize {
        let store = self.gateways[gateway].store.as_ref().expect("a store");
        usize::try_from(store.unused()).expect("small")
    }

    /// Ends a gateway without a word, and starts another one in its place.
    pub(super) fn kill(&mut self, gateway: usize) {
        let next = self.gateway();
        let killed = core::mem::replace(&mut self.gateways[gateway], next);
        // Its task would return the leases.
        if let Some(store) = &killed.store {
            store.silence();
        }
    }

    pub(super) async fn request(&mut self, gateway: usize) -> bool {
        self.begin(gateway).await.is_some()
    }

    /// Lets happen what a step says, but for requests.
    pub(super) async fn undergo(&mut self, step: Step) {
        match step {
            Step::Requests(..) => {}
            Step::Pass(millis) => self.pass(millis).await,
            Step::Hang(millis) => self.pass_store_time(millis),
            Step::Calendar(gateway, seconds) => self.gateways[gateway].skew = seconds,
            Step::Kill(gateway) => self.kill(gateway),
            Step::LoseData => self.model.lose_data(),
            Step::LoseDataUnnoticed => self.lose_data_unnoticed(),
            Step::Outage(millis) => {
                self.model.fails.store(true, Relaxed);
                self.pass(millis).await;
                for gateway in 0..self.gateways.len() {
                    let _ = self.request(gateway).await;
                }
                self.model.fails.store(false, Relaxed);
                self.pass(300).await;
            }
        }
    }

    /// Has the store lose its data, which gateways that do not ask it notice a second later.
    pub(super) fn lose_data_unnoticed(&mut self) {
        self.model.lose_data_unnoticed();
        self.heartbeat = Some(1_000);
    }

    /// Whether gateways that do not ask the store have not noticed a loss of data yet.
    pub(super) fn is_loss_unnoticed(&self) -> bool {
        self.heartbeat.is_some()
    }

    /// Sends requests to a gateway; returns how many were admitted.
    pub(super) async fn times(&mut self, gateway: usize, requests: usize) -> usize {
        self.admitted(gateway, self.host, requests).await
    }

    /// Returns how many requests a gateway decided without the store.
    pub(super) fn store_errors(&self, gateway: usize) -> u64 {
        let series =
            r#"northgate_limit_decisions_total{limit="daily",route="orders",result="store_error"}"#;
        let text = self.gateways[gateway].metrics.render();
        let count = text.lines().find_map(|line| line.strip_prefix(series));
        count.map_or(0, |count| count.trim().parse().expect("a number"))
    }

    /// Begins a request; it is in flight until the state is dropped.
    pub(super) async fn begin(&mut self, gateway: usize) -> Option<LimitState> {
        self.begin_sized(gateway, Some(0)).await.ok()
    }

    /// Begins a request with a body of `size` bytes; `None` is unknown.
    pub(super) async fn begin_sized(
        &mut self,
        gateway: usize,
        size: Option<u64>,
    ) -> Result<LimitState, LimitExceeded> {
        // Lets the gateways' tasks take in what they have received.
        tokio::task::yield_now().await;
        let mut state = LimitState::default();
        for stage in [Stage::BeforeAuthentication, Stage::AfterAuthorization] {
            let decision = self.at(gateway, size, |route, subject, moment| {
                route.decide(stage, subject, moment, &mut state)
            });
            let outcome = match decision {
                Decision::Made(outcome) => outcome,
                Decision::Ask(mut question) => {
                    question.send().await;
                    self.at(gateway, size, |route, subject, moment| {
                        route.settle(stage, subject, moment, &mut state, question)
                    })
                }
            };
            outcome?;
        }
        Ok(state)
    }

    /// Begins a request that asks the store after authorization, and stops before it does.
    pub(super) fn question(&self, gateway: usize) -> Question {
        self.try_question(gateway).expect("decided alone")
    }

    /// Begins a request, and stops if it asks the store after authorization; `None` if the gateway decides alone.
    pub(super) fn try_question(&self, gateway: usize) -> Option<Question> {
        let mut state = LimitState::default();
        let decision = self.at(gateway, Some(0), |route, subject, moment| {
            route.decide(Stage::AfterAuthorization, subject, moment, &mut state)
        });
        match decision {
            Decision::Ask(question) => Some(question),
            Decision::Made(_) => None,
        }
    }

    /// Ends a request whose question the store has answered, or not.
    pub(super) fn settle(&self, gateway: usize, question: Question) -> Option<LimitState> {
        let mut state = LimitState::default();
        let outcome = self.at(gateway, Some(0), |route, subject, moment| {
            route.settle(Stage::AfterAuthorization, subject, moment, &mut state, question)
        });
        outcome.is_ok().then_some(state)
    }

    /// Begins a request with a body of `size` bytes, and stops if it asks the store after authorization.
    pub(super) fn decide_sized(&self, gateway: usize, size: u64) -> Decision {
        let mut state = LimitState::default();
        self.at(gateway, Some(size), |route, subject, moment| {
            route.decide(Stage::AfterAuthorization, subject, moment, &mut state)
        })
    }

    /// Ends a request with a body of `size` bytes whose question the store has answered, or not; whether it passes.
    pub(super) fn settle_sized(&self, gateway: usize, size: u64, question: Question) -> bool {
        let mut state = LimitState::default();
        let outcome = self.at(gateway, Some(size), |route, subject, moment| {
            route.settle(Stage::AfterAuthorization, subject, moment, &mut state, question)
        });
        outcome.is_ok()
    }

    /// Passes `decide` the route, the request and the time of a gateway.
    fn at<R>(
        &self,
        gateway: usize,
        size: Option<u64>,
        decide: impl FnOnce(&RouteLimits, &LimitKeySource<'_>, Now) -> R,
    ) -> R {
        let Gateway { route, skew, .. } = &self.gateways[gateway];
        let (now, uptime) = self.clock.now_and_instant();
        let moment =
            Now { now: Timestamp::from_secs(now.as_secs().saturating_add_signed(*skew)), uptime };
        let headers = HeaderMap::new();
        let subject = LimitKeySource {
            ip: IpAddr::from([192, 0, 2, self.host]),
            route: "orders",
            issuer: None,
            client: None,
            subject: None,
            session: None,
            headers: &headers,
            claim: &|_| Some(&self.plan),
            method: &Method::GET,
            request_size: size,
        };
        decide(route, &subject, moment)
    }

    /// Sends requests of the caller at `host` to a gateway; returns how many were admitted.
    pub(super) async fn admitted(&mut self, gateway: usize, host: u8, requests: usize) -> usize {
        self.host = host;
        let mut admitted = 0;
        for _ in 0..requests {
            admitted += usize::from(self.request(gateway).await);
        }
        admitted
    }

    /// Returns the seconds that a gateway has a client wait.
    pub(super) async fn retry_after(&mut self, gateway: usize) -> Option<u64> {
        match self.begin_sized(gateway, Some(0)).await {
            Err(LimitExceeded::Limited(limited)) => Some(limited.retry_after),
            _ => None,
        }
    }

    pub(super) fn pass_store_time(&self, millis: u64) {
        self.clock.advance(Duration::from_millis(millis));
        self.model.now.fetch_add(millis * 1_000, Relaxed);
    }

    /// Lets time pass, with the gateways' tasks at work.
    pub(super) async fn pass(&mut self, millis: u64) {
        let steps = millis.div_ceil(100).min(40);
        for _ in 0..steps {
            self.pass_store_time(millis / steps);
            if let Some(left) = self.heartbeat {
                self.heartbeat = left.checked_sub(millis / steps).filter(|left| *left > 0);
                if self.heartbeat.is_none() {
                    self.model.notice_loss();
                }
            }
            tokio::time::advance(Duration::from_millis(101)).await;
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
        }
    }
}

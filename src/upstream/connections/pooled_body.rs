//! A response body that returns its connection to the pool, and its permit to the endpoint, when it ends.

use core::cell::RefCell;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::idle_pool::IdlePool;
use crate::base::body;
use crate::upstream::balancing::endpoint::{Endpoint, EndpointPermit};
use crate::upstream::health::client_pauses::ClientPauses;
use crate::upstream::health::passive_health::PassiveHealth;
use crate::upstream::http1::{self, Connection, RemainingUpload};

/// A permit at an endpoint during one exchange.
pub(in crate::upstream) struct Held {
    pub(in crate::upstream) endpoint: Arc<Endpoint>,
    pub(in crate::upstream) load: EndpointPermit,
    pub(in crate::upstream) idle: IdlePool,
    /// The timeout for an upstream that reads nothing of the request.
    pub(in crate::upstream) time_limit: Duration,
    pub(in crate::upstream) passive: Arc<PassiveHealth>,
    /// The uptime at which the request was sent.
    pub(in crate::upstream) began: Duration,
}

impl Held {
    /// Releases the permit: the response is complete; once the request is too, the connection is idle again.
    pub(in crate::upstream) fn release(self, rest: RemainingUpload) {
        if rest.is_over() {
            return self.keep(rest.reusable());
        }
        // The rest of the request is sent independently of the response, which may end long before.
        tokio::task::spawn_local(async move {
            let connection = rest.send(self.time_limit).await;
            self.keep(connection);
        });
    }

    fn keep(self, connection: Option<Box<Connection>>) {
        let Self { endpoint, load, idle, passive, .. } = self;
        if let Some(connection) = connection {
            let (now, keep_alive) = (passive.clock.uptime(), passive.settings.keep_alive);
            idle.put(&endpoint, connection, now, keep_alive);
        }
        drop(load);
    }
}

/// A response body on its way to the client.
pub(in crate::upstream) struct PooledBody {
    pub(in crate::upstream) content: Rc<RefCell<http1::ResponseBody>>,
    /// `None` once the body has ended.
    pub(in crate::upstream) held: Option<Held>,
    /// Whether the end of the body is an outcome of the request: streams that may be endless have none.
    pub(in crate::upstream) judges: bool,
    pub(in crate::upstream) pauses: ClientPauses,
}

impl http_body::Body for PooledBody {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let this = self.get_mut();
        let mut content = this.content.borrow_mut();
        let polled = Pin::new(&mut *content).poll_frame(cx);
        if let Some(held) = this.held.as_ref().filter(|_| this.judges) {
            this.pauses.polled(&polled, held.passive.clock.uptime());
            if let Poll::Ready(Some(Err(error))) = &polled
                && !this.pauses.may_have_cut()
            {
                held.passive.broke_off(&held.endpoint, error, held.began);
            }
        }
        if let Some(rest) = content.rest()
            && let Some(held) = this.held.take()
        {
            if this.judges {
                held.passive.completed(&held.endpoint, held.began);
            }
            held.release(rest);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.content.borrow().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.borrow().size_hint()
    }
}

//! Trailers of a response, from which the gateway removes what it removes from the header section, or sets there.

use core::pin::Pin;
use core::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderName;
use http_body::{Frame, SizeHint};

use crate::base::body::{self, Body};
use crate::gateway::policy::cors;

/// Returns the same body without trailer fields of these names, and without CORS fields if `has_cors`.
pub(crate) fn remove<'a>(
    body: Body,
    names: impl Iterator<Item = &'a HeaderName>,
    has_cors: bool,
) -> Body {
    let names: Box<[HeaderName]> = names.cloned().collect();
    body.wrapped(|body| EditedTrailers { body, names, has_cors })
}

struct EditedTrailers {
    body: Body,
    names: Box<[HeaderName]>,
    has_cors: bool,
}

impl http_body::Body for EditedTrailers {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let Self { body, names, has_cors } = self.get_mut();
        let mut polled = ready!(Pin::new(body).poll_frame(cx));
        if let Some(Ok(frame)) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            for name in names.iter() {
                trailers.remove(name);
            }
            if *has_cors {
                cors::remove_upstream_fields(trailers);
            }
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

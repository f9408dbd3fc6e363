//! Reads the beginning of a body into memory, or all of a small one.

use core::pin::Pin;
use core::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::body::{Body, Error};

/// Returns the same body, in memory if it ends before `deadline` without exceeding `limit` bytes and has no trailers;
/// otherwise the part that was read goes before the rest.
///
/// # Errors
///
/// The error of the body.
pub async fn read_ahead(
    mut body: Body,
    limit: usize,
    deadline: Option<Instant>,
) -> Result<Body, Error> {
    if body.is_buffered() || body.size_hint().lower() > limit as u64 {
        return Ok(body);
    }
    let mut read = BytesMut::new();
    loop {
        let next = match deadline {
            Some(deadline) => timeout_at(deadline, body.frame()).await,
            None => Ok(body.frame().await),
        };
        let trailers = match next {
            Ok(None) => return Ok(read.freeze().into()),
            Ok(Some(frame)) => match frame?.into_data() {
                Ok(data) => {
                    read.extend_from_slice(&data);
                    None
                }
                Err(trailers) => Some(trailers),
            },
            Err(_elapsed) => return Ok(resumed(read.freeze(), None, body)),
        };
        if trailers.is_some() || read.len() > limit {
            return Ok(resumed(read.freeze(), trailers, body));
        }
    }
}

/// Returns the same body once its first part has arrived, or at `deadline`.
///
/// # Errors
///
/// The error of a body that fails before it has a part.
pub async fn first_part(mut body: Body, deadline: Instant) -> Result<Body, Error> {
    match timeout_at(deadline, body.frame()).await {
        Err(_elapsed) => Ok(body),
        Ok(None) => Ok(Body::empty()),
        Ok(Some(frame)) => Ok(match frame?.into_data() {
            Ok(data) => resumed(data, None, body),
            Err(trailers) => resumed(Bytes::new(), Some(trailers), body),
        }),
    }
}

fn resumed(read: Bytes, trailers: Option<Frame<Bytes>>, rest: Body) -> Body {
    if read.is_empty() && trailers.is_none() {
        return rest;
    }
    let first = (!read.is_empty()).then_some(read);
    rest.wrapped(|rest| Resumed { first, trailers, rest })
}

/// A body whose beginning was read.
struct Resumed {
    first: Option<Bytes>,
    trailers: Option<Frame<Bytes>>,
    rest: Body,
}

impl http_body::Body for Resumed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if let Some(trailers) = this.trailers.take() {
            return Poll::Ready(Some(Ok(trailers)));
        }
        Pin::new(&mut this.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.trailers.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let read = self.first.as_ref().map_or(0, Bytes::len) as u64;
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + read);
        }
        hint.set_lower(rest.lower() + read);
        hint
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;

    fn streaming(pieces: &[usize]) -> Body {
        let frames: Vec<_> =
            pieces.iter().map(|&size| Ok(Frame::data(vec![b'x'; size].into()))).collect();
        Body::streaming(http_body_util::StreamBody::new(futures_util::stream::iter(frames)))
    }

    #[tokio::test]
    async fn a_first_part_is_waited_for_and_an_error_before_it_is_returned() {
        let deadline = Instant::now() + Duration::from_secs(60);
        let body = first_part(streaming(&[100, 200]), deadline).await.expect("it begins");
        assert_eq!(body.collect(1_000).await.expect("whole").len(), 300);

        let failed = futures_util::stream::iter([Err::<Frame<Bytes>, Error>("broken".into())]);
        let failed = Body::streaming(http_body_util::StreamBody::new(failed));
        assert!(first_part(failed, deadline).await.is_err());
    }

    #[tokio::test]
    async fn a_small_body_is_in_memory_and_a_large_one_passes_on() {
        let small = read_ahead(streaming(&[100, 200]), 1_000, None).await.expect("whole");
        assert_eq!(small.buffered().map(|bytes| bytes.len()), Some(300));

        let large = read_ahead(streaming(&[600, 600, 5]), 1_000, None).await.expect("whole");
        assert!(!large.is_buffered());
        assert_eq!(large.collect(1 << 20).await.expect("whole").len(), 1_205);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_body_passes_on_after_the_deadline() {
        use futures_util::StreamExt;
        let first = futures_util::stream::iter([Ok(Frame::data(Bytes::from("a")))]);
        let endless = Body::streaming(http_body_util::StreamBody::new(
            first.chain(futures_util::stream::pending()),
        ));

        let deadline = Instant::now() + Duration::from_millis(20);
        let mut body = read_ahead(endless, 1_000, Some(deadline)).await.expect("a part");

        let frame = body.frame().await.expect("a frame").expect("data");
        assert_eq!(frame.into_data().expect("data"), "a");
    }
}

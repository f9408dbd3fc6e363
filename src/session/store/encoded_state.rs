//! The encoding of a session's state, to be sealed into a cookie or for Redis.

use zeroize::Zeroizing;

use super::state::{Id, SessionState};
use crate::base::clock::Timestamp;
use crate::base::secret::Secret;

impl SessionState {
    /// Encodes the state for sealing.
    pub(crate) fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let texts = [
            Some(self.access_token.expose()),
            self.refresh_token.as_ref().map(Secret::expose),
            self.id_token.as_ref().map(Secret::expose),
            self.scope.as_ref(),
            self.userinfo.as_ref(),
            self.subject.as_ref(),
        ];
        let length: usize = texts.iter().flatten().map(|text| text.len()).sum();
        // The capacity suffices: a reallocation would leave an unwiped copy behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(HEAD_LEN + TEXT_FIELDS * 4 + length));
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.id.0);
        for time in [self.since, self.seen, self.received, self.ends, self.refresh_ends] {
            bytes.extend_from_slice(&time.as_nanos().to_be_bytes());
        }
        bytes.extend_from_slice(&self.home.to_be_bytes());
        bytes.push(u8::from(self.is_opaque) | u8::from(self.is_id_token_owed) << 1);
        for text in texts {
            // An impossible length marks an absent text, as opposed to an empty one.
            let len = text.map_or(ABSENT, |text| u32::try_from(text.len()).unwrap_or(ABSENT));
            bytes.extend_from_slice(&len.to_be_bytes());
            bytes.extend_from_slice(text.map(String::as_bytes).unwrap_or_default());
        }
        bytes
    }

    /// Decodes the output of [`SessionState::to_bytes`]; `None` for other bytes.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (version, mut rest) = bytes.split_first()?;
        // Sessions of an earlier release go on.
        let (has_identity, has_subject) = match *version {
            VERSION => (true, true),
            VERSION_WITHOUT_SUBJECT => (true, false),
            VERSION_WITHOUT_IDENTITY => (false, false),
            _ => return None,
        };
        let id = Id(*take(&mut rest)?);
        let [since, seen, received, ends, refresh_ends] = {
            let mut times = [Timestamp::MAX; 5];
            for time in &mut times {
                *time = Timestamp::from_nanos(u64::from_be_bytes(*take(&mut rest)?));
            }
            times
        };
        let home = u64::from_be_bytes(*take(&mut rest)?);
        let [flags] = if has_identity { *take(&mut rest)? } else { [0] };
        if flags > if has_subject { 3 } else { 1 } {
            return None;
        }
        let mut text = || {
            let len = u32::from_be_bytes(*take(&mut rest)?);
            if len == ABSENT {
                return Some(None);
            }
            let (text, after) = rest.split_at_checked(len as usize)?;
            rest = after;
            Some(Some(core::str::from_utf8(text).ok()?.to_owned()))
        };
        let state = Self {
            id,
            since,
            seen,
            received,
            ends,
            refresh_ends,
            home,
            access_token: text()??.into(),
            refresh_token: text()?.map(Secret::from),
            id_token: text()?.map(Secret::from),
            scope: text()?,
            is_opaque: flags & 1 != 0,
            is_id_token_owed: flags & 2 != 0,
            userinfo: if has_identity { text()? } else { None },
            subject: if has_subject { text()? } else { None },
        };
        rest.is_empty().then_some(state)
    }
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(taken)
}

const VERSION: u8 = 4;
const VERSION_WITHOUT_SUBJECT: u8 = 3;
const VERSION_WITHOUT_IDENTITY: u8 = 2;
const HEAD_LEN: usize = 1 + 16 + 6 * 8 + 1;
const TEXT_FIELDS: usize = 6;
const ABSENT: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use proptest::option;
    use proptest::prelude::*;

    use super::*;
    use crate::issuer::tests::mock_issuer::access_token_alone;

    #[test]
    fn trailing_bytes_are_rejected() {
        let bytes = state().to_bytes();
        for end in 0..bytes.len() {
            assert!(SessionState::from_bytes(&bytes[..end]).is_none());
        }
        assert!(SessionState::from_bytes(&[&bytes[..], b"x"].concat()).is_none());
    }

    fn state() -> SessionState {
        const NOON: Timestamp = Timestamp::from_secs(1_700_049_600);
        SessionState::begin(access_token_alone(NOON), NOON)
    }

    proptest! {
        #[test]
        fn an_encoded_state_decodes(
            times: [u64; 5],
            home: u64,
            access in "\\PC*",
            refresh in option::of("\\PC*"),
            id in option::of("\\PC*"),
            scope in option::of("\\PC*"),
            is_opaque: bool,
            is_id_token_owed: bool,
            userinfo in option::of("\\PC*"),
            subject in option::of("\\PC*"),
        ) {
            let [since, seen, received, ends, refresh_ends] = times.map(Timestamp::from_nanos);
            let state = SessionState {
                id: Id::new(),
                since, seen, received, ends, refresh_ends, home,
                access_token: access.into(),
                refresh_token: refresh.map(Secret::from),
                id_token: id.map(Secret::from),
                scope, is_opaque, is_id_token_owed, userinfo, subject,
            };
            prop_assert_eq!(SessionState::from_bytes(&state.to_bytes()), Some(state));
        }

        #[test]
        fn any_bytes_decode_or_are_rejected(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = SessionState::from_bytes(&bytes);
            let _ = SessionState::from_bytes(&[&[VERSION][..], &bytes].concat());
        }
    }
}

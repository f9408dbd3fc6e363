//! Revoked tokens are refused at once, whatever caches had them, and stay refused.

use core::time::Duration;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Bench, NOW};
use crate::base::clock::{Clock, Timestamp};
use crate::issuer::tests::mock_issuer::{Answer, INTROSPECT};
use crate::token::revocation::publication::NotLasting;
use crate::token::{
    Revocation, RevocationEvent, RevocationList, RevocationTarget, TokenError, TokenHolder,
    TokenUse, ValidationRules, Verifier, token_digest,
};

#[tokio::test]
async fn a_revoked_token_is_refused_at_once_and_until_its_expiry() {
    for (claims, what) in [
        (json!({ "jti": "t1" }), RevocationTarget::Id("t1".into())),
        (json!({ "sid": "s1" }), RevocationTarget::Session("s1".into())),
        (json!({ "iat": NOW - 1 }), RevocationTarget::Subject("alice".into())),
        (json!({}), RevocationTarget::Subject("alice".into())),
    ] {
        let bench = Bench::new().await;
        let days = json!({ "exp": NOW + 3 * 24 * 60 * 60 });
        let token = bench.token(super::merged(claims, days));
        bench.jwt(&token).await.unwrap();

        assert_eq!(bench.revocations.revoke(named(what.clone()), None), 1, "{what:?}");

        assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Revoked), "{what:?}");
        bench.clock.advance(Duration::from_secs(3 * 24 * 60 * 60 - 1));
        assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Revoked), "{what:?}");
    }
}

#[tokio::test]
async fn a_withdrawn_token_is_refused_from_clients_until_its_issuer_revokes_it_for_all() {
    for holder in [TokenHolder::Client, TokenHolder::Gateway] {
        let bench = Bench::with(|_| (), |rules| rules.holder = holder).await;
        let verifier = bench.verifier(TokenUse::Jwt);
        let (token, other) = (bench.token(json!({ "jti": "t1" })), bench.token(json!({})));
        bench.jwt(&token).await.unwrap();

        verifier.withdraw(&token);

        let is_refused = bench.jwt(&token).await.is_err();
        assert_eq!(is_refused, holder == TokenHolder::Client);
        for token in [&token, &other] {
            verifier.revoke_withdrawn(token);
        }
        assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Revoked), "{holder:?}");
        assert!(bench.jwt(&other).await.is_ok(), "no session with it has ended");
    }
}

#[tokio::test]
async fn revoking_one_token_leaves_others_valid() {
    let bench = Bench::new().await;
    let token = bench.token(json!({ "jti": "t1", "sid": "s1" }));
    let first = bench.jwt(&token).await.unwrap();

    for what in [
        RevocationTarget::Id("t2".into()),
        RevocationTarget::Id("s1".into()),
        RevocationTarget::Session("t1".into()),
        RevocationTarget::Subject("bob".into()),
        RevocationTarget::Token([0; 32]),
    ] {
        assert_eq!(bench.revocations.revoke(named(what), None), 0);
    }
    let elsewhere =
        Revocation { issuer: Some("other".into()), what: RevocationTarget::Id("t1".into()) };
    assert_eq!(bench.revocations.revoke(elsewhere, None), 0);

    assert!(Arc::ptr_eq(&first, &bench.jwt(&token).await.unwrap()));
}

#[tokio::test]
async fn a_token_that_one_entry_of_an_iss_revokes_is_refused_by_the_other() {
    let web = Bench::with(|_| (), |rules| rules.namespace = Some("iss".into())).await;
    let api = web.reloaded(|settings| settings.name = "api".into(), |_| ()).await;
    let api = Verifier::new(TokenUse::Jwt, [api]);
    let tokens = ["used", "unused"].map(|jti| web.token(json!({ "jti": jti })));
    api.verify(&tokens[0], web.clock.now(), None).await.unwrap();

    for token in &tokens {
        web.verifier(TokenUse::Jwt).withdraw(token);
    }

    for token in &tokens {
        let verified = api.verify(token, web.clock.now(), None).await;
        assert_eq!(verified.err(), Some(TokenError::Revoked));
    }
}

#[tokio::test]
async fn the_entry_of_an_iss_that_verifies_a_token_decides_whether_it_is_active() {
    let web = Bench::with(|_| (), |rules| rules.revocation_check = true).await;
    let lax = |rules: &mut ValidationRules| rules.revocation_check = false;
    let api = web.reloaded(|settings| settings.name = "api".into(), lax).await;
    let both = Verifier::new(TokenUse::Jwt, [Arc::clone(&web.issuer_verifier), api]);

    for (answer, expected) in [
        (Answer::json(json!({ "active": false })), TokenError::Revoked),
        (Answer::status(500), TokenError::Unavailable { retry_after: 1 }),
    ] {
        web.server.says(INTROSPECT, answer);
        let token = web.token(json!({ "jti": expected.to_string() }));
        let verified = both.verify(&token, web.clock.now(), None).await;
        assert_eq!(verified.err(), Some(expected));
    }
}

#[tokio::test]
async fn a_revoked_opaque_token_is_introspected_once_in_a_while() {
    let bench = Bench::new().await;
    bench.server.says(INTROSPECT, Answer::json(json!({ "active": true, "aud": "api" })));
    bench.verifier(TokenUse::Introspection).withdraw("t");

    for _ in 0..5 {
        assert_eq!(bench.reference("t").await.err(), Some(TokenError::Revoked));
    }
    assert_eq!(bench.server.count(INTROSPECT), 1);

    // Received anew, it may be younger than what revoked it.
    bench.verifier(TokenUse::Introspection).received("t", bench.clock.now());
    assert_eq!(bench.reference("t").await.err(), Some(TokenError::Revoked));
    assert_eq!(bench.server.count(INTROSPECT), 2);
}

#[tokio::test]
async fn a_token_revoked_before_its_first_use_is_refused() {
    let bench = Bench::new().await;
    let token = bench.token(json!({}));
    bench.revocations.revoke(named(RevocationTarget::Token(token_digest(&token))), None);

    assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Revoked));
}

#[tokio::test]
async fn a_revoked_subject_may_log_in_again() {
    let bench = Bench::new().await;
    bench.revocations.revoke(named(RevocationTarget::Subject("alice".into())), None);

    let old = bench.token(json!({ "iat": NOW - 5 }));
    bench.clock.advance(Duration::from_secs(1));
    let new = bench.token(json!({ "iat": NOW + 1 }));

    assert_eq!(bench.jwt(&old).await.err(), Some(TokenError::Revoked));
    assert!(bench.jwt(&new).await.is_ok());
}

#[tokio::test]
async fn a_revoked_opaque_token_is_introspected_again() {
    let bench = Bench::new().await;
    let answer =
        |issued: u64| json!({ "active": true, "sub": "alice", "aud": "api", "iat": issued });
    bench.server.says(INTROSPECT, Answer::json(answer(NOW - 1)));
    bench.reference("t").await.unwrap();

    assert_eq!(bench.revocations.revoke(named(RevocationTarget::Subject("alice".into())), None), 1);
    assert_eq!(bench.reference("t").await.err(), Some(TokenError::Revoked));
    assert_eq!(bench.server.count(INTROSPECT), 2);

    bench.clock.advance(Duration::from_secs(2));
    bench.server.says(INTROSPECT, Answer::json(answer(NOW + 1)));
    assert!(bench.reference("later").await.is_ok());
    bench.revocations.revoke(named(RevocationTarget::Token(token_digest("later"))), None);
    assert_eq!(bench.reference("later").await.err(), Some(TokenError::Revoked));
}

#[tokio::test]
async fn a_token_without_iat_does_not_survive_its_subjects_revocation() {
    let bench = Bench::new().await;
    let answer = json!({ "active": true, "sub": "alice", "aud": "api" });
    bench.server.says(INTROSPECT, Answer::json(answer));
    bench.reference("t").await.unwrap();
    let signed = bench.token(json!({ "exp": NOW + 7 * 86_400 }));
    bench.jwt(&signed).await.unwrap();
    bench.revocations.revoke(named(RevocationTarget::Subject("alice".into())), None);

    for _ in 0..2 {
        assert_eq!(bench.reference("t").await.err(), Some(TokenError::Revoked));
        assert_eq!(bench.reference("never seen").await.err(), Some(TokenError::Revoked));
        assert_eq!(bench.jwt(&signed).await.err(), Some(TokenError::Revoked));
        bench.clock.advance(Duration::from_secs(60));
    }

    // A token that the gateway has received itself since then is younger.
    let received = bench.clock.now();
    assert!(bench.revocations.receive("login", received));
    assert!(bench.reference("login").await.is_ok());
    assert_eq!(bench.reference("t").await.err(), Some(TokenError::Revoked));
}

#[tokio::test]
async fn tokens_of_an_issuer_with_a_fast_clock_do_not_survive_a_revocation() {
    for seen_before in [true, false] {
        let bench = Bench::new().await;
        // The issuer's clock is twenty seconds ahead of the gateway's.
        let token = |at: u64, jti: &str| bench.token(json!({ "iat": at + 20, "jti": jti }));
        let (old, never_seen) = (token(NOW - 1, "old"), token(NOW - 2, "never seen"));
        if seen_before {
            bench.jwt(&old).await.unwrap();
        }
        bench.revocations.revoke(named(RevocationTarget::Subject("alice".into())), None);

        for _ in 0..30 {
            for token in [&old, &never_seen] {
                assert_eq!(bench.jwt(token).await.err(), Some(TokenError::Revoked));
            }
            bench.clock.advance(Duration::from_secs(2));
        }
        let next = token(bench.clock.now().as_secs(), "next");
        assert!(bench.jwt(&next).await.is_ok(), "a new login, {seen_before}");
    }
}

#[tokio::test]
async fn an_issuers_fast_clock_is_known_to_other_instances_and_later_processes() {
    for skew in [3, 20, 90] {
        let directory = tempfile::tempdir().unwrap();
        let directory = crate::disk::Directory::at(directory.path());
        let here = Bench::new().await;
        here.revocations.persist_in(&directory).unwrap();
        let mut events = here.revocations.listen();
        here.jwt(&here.token(json!({ "iat": NOW + skew }))).await.unwrap();
        here.clock.advance(Duration::from_secs(2));
        here.revocations.revoke(named(RevocationTarget::Subject("alice".into())), None);
        here.revocations.kept().await.unwrap();

        let (other, later) = (Bench::new().await, Bench::new().await);
        for instance in [&other, &later] {
            // When no token that was issued before seems to come from the future.
            instance.clock.advance(Duration::from_secs(skew + 4));
        }
        while let Ok(event) = events.try_recv() {
            other.revocations.apply(event);
        }
        later.revocations.persist_in(&directory).unwrap();

        for instance in [&other, &later] {
            let old = instance.token(json!({ "iat": NOW + 1 + skew }));
            assert_eq!(instance.jwt(&old).await.err(), Some(TokenError::Revoked), "{skew}");
            let new = instance.token(json!({ "iat": NOW + 5 + 2 * skew }));
            assert!(instance.jwt(&new).await.is_ok(), "{skew}");
        }
    }
}

#[tokio::test]
async fn the_clock_of_an_issuer_is_known_for_as_long_as_its_subjects_revocations() {
    let bench = Bench::new().await;
    let days = |days: u64| Duration::from_secs(days * 86_400);
    let at = |at: u64| bench.token(json!({ "iat": at, "exp": NOW + days(9).as_secs() }));
    bench.jwt(&at(NOW + 20)).await.unwrap();
    bench.clock.advance(Duration::from_secs(86_340));
    let now = bench.clock.now();
    bench
        .revocations
        .revoke(named(RevocationTarget::Subject("alice".into())), Some(now.plus(days(5))));

    // A smaller skew, which a token shows that was on its way for longer.
    bench.clock.advance(Duration::from_secs(7_200));
    let again =
        bench.token(json!({ "iat": bench.clock.now().as_secs() + 2, "exp": NOW + 777_600 }));
    bench.jwt(&again).await.unwrap();
    bench.clock.advance(days(4));

    assert_eq!(bench.jwt(&at(now.as_secs() + 15)).await.err(), Some(TokenError::Revoked));
}

#[tokio::test]
async fn a_token_that_may_be_as_old_as_a_revocation_is_refused_by_every_instance() {
    let bench = Bench::new().await;
    let mut events = bench.revocations.listen();
    bench.revocations.revoke(named(RevocationTarget::Subject("alice".into())), None);
    bench.clock.advance(Duration::from_secs(1));
    let token = bench.token(json!({ "iat": NOW + 12 }));

    assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Revoked));

    let whole = RevocationTarget::Token(token_digest(&token));
    let is_told = core::iter::from_fn(|| events.try_recv().ok())
        .any(|event| event.revocation.what == whole && !event.learned);
    assert!(is_told, "another instance would take it after its `iat`");
}

#[tokio::test]
async fn without_a_state_directory_a_revocation_lasts_once_it_is_published() {
    let bench = Bench::new().await;
    let list = bench.revocations.clone();
    assert_eq!(list.lasting().await, Ok(()), "there is no other instance to tell");

    let mut requests = list.publication_requests();
    for (is_published, expected) in [(true, Ok(())), (false, Err(NotLasting::NotPublished))] {
        let answer = async {
            let done = requests.recv().await.unwrap();
            done.send(is_published).unwrap();
        };
        let (lasting, ()) = tokio::join!(list.lasting(), answer);
        assert_eq!(lasting, expected);
    }

    drop(requests);
    assert_eq!(list.lasting().await, Ok(()), "Redis was taken out of the configuration");
    let directory = tempfile::tempdir().unwrap();
    let mut requests = list.publication_requests();
    list.persist_in(&crate::disk::Directory::at(directory.path())).unwrap();
    assert_eq!(list.lasting().await, Ok(()));
    assert!(requests.try_recv().is_err(), "the directory is enough");
}

#[tokio::test]
async fn a_login_right_after_a_revocation_is_valid_with_a_fast_clock_as_well() {
    let bench = Bench::new().await;
    let token = |at: u64| bench.token(json!({ "iat": at + 20 }));
    bench.jwt(&token(NOW)).await.unwrap();
    bench.revocations.revoke(named(RevocationTarget::Subject("alice".into())), None);

    bench.clock.advance(Duration::from_secs(2));

    assert!(bench.jwt(&token(NOW + 2)).await.is_ok());
}

#[tokio::test]
async fn a_token_received_after_a_revocation_is_younger_by_any_clock() {
    let bench = Bench::new().await;
    // The issuer's clock is a minute behind the gateway's.
    let token = |jti: &str| bench.token(json!({ "iat": NOW - 60, "jti": jti }));
    let (before, after) = (token("before"), token("after"));
    assert!(!bench.revocations.receive(&before, bench.clock.now()), "nothing to be younger than");
    bench.revocations.revoke(named(RevocationTarget::Subject("alice".into())), None);
    bench.clock.advance(Duration::from_secs(1));

    assert!(bench.revocations.receive(&after, bench.clock.now()));

    assert!(bench.jwt(&after).await.is_ok());
    assert_eq!(bench.jwt(&before).await.err(), Some(TokenError::Revoked));
}

#[tokio::test]
async fn the_next_process_knows_ended_tokens() {
    let directory = tempfile::tempdir().unwrap();
    let directory = crate::disk::Directory::at(directory.path());
    let before = Bench::new().await;
    before.revocations.persist_in(&directory).unwrap();
    let token = before.token(json!({ "jti": "t1", "exp": NOW + 7 * 86_400 }));
    let principal = before.jwt(&token).await.unwrap();
    before.revocations.revoke(named(RevocationTarget::Id("t1".into())), None);
    before.revocations.revoke(named(RevocationTarget::GatewaySession("v".into())), None);
    assert!(before.revocations.record_logout_token(&"web".into(), &"logout".into()));
    before.revocations.kept().await.unwrap();

    let after = RevocationList::new(before.clock.clone());
    after.persist_in(&directory).unwrap();

    assert!(after.is_revoked(&principal, TokenHolder::Client));
    assert!(!after.record_logout_token(&"web".into(), &"logout".into()));
    assert!(after.record_logout_token(&"admin".into(), &"logout".into()), "of another client");
    let standing = after.active();
    assert_eq!(standing.len(), 2, "other gateways are told what they do not know: {standing:?}");
    // Until the expiry of the token that was cached before.
    assert!(standing.iter().any(|news| news.until >= Timestamp::from_secs(NOW + 7 * 86_400)));
}

#[tokio::test]
async fn a_revocation_notifies_its_listeners() {
    let bench = Bench::new().await;
    let mut news = bench.revocations.listen();
    let principal = bench.jwt(&bench.token(json!({ "sid": "s1" }))).await.unwrap();

    bench.revocations.revoke(named(RevocationTarget::Session("s1".into())), None);

    let told = news.recv().await.unwrap();
    assert!(told.names(&principal) && !told.learned);
    assert!(bench.revocations.is_revoked(&principal, TokenHolder::Client));
}

#[tokio::test]
async fn revocations_of_another_instance_apply_here() {
    let (here, there) = (Bench::new().await, Bench::new().await);
    let mut news = there.revocations.listen();
    let token = here.token(json!({ "iat": NOW - 1 }));
    here.jwt(&token).await.unwrap();
    there.revocations.revoke(named(RevocationTarget::Subject("alice".into())), None);
    here.clock.advance(Duration::from_secs(5));

    assert_eq!(here.revocations.apply(news.recv().await.unwrap()), 1);

    assert_eq!(here.jwt(&token).await.err(), Some(TokenError::Revoked));
    // By the time of revocation there, not of receipt here.
    let later = here.token(json!({ "iat": NOW + 1 }));
    assert!(here.jwt(&later).await.is_ok());
}

#[tokio::test]
async fn a_flood_of_revocations_uses_bounded_memory() {
    let bench = Bench::new().await;
    let end = |seconds| Some(Timestamp::from_secs(NOW + seconds));
    bench.revocations.revoke(named(RevocationTarget::Id("lasting".into())), end(1_000_000));
    for number in 0..1_100 {
        bench
            .revocations
            .revoke(named(RevocationTarget::Id(number.to_string().into())), end(number));
    }

    let token = |jti: Value| bench.token(json!({ "jti": jti }));
    assert!(bench.jwt(&token(json!("lasting"))).await.is_err());
    assert!(bench.jwt(&token(json!("1099"))).await.is_err());
    assert!(bench.jwt(&token(json!("0"))).await.is_ok(), "what ended first made room");
}

fn named(what: RevocationTarget) -> Revocation {
    Revocation { issuer: None, what }
}

#[test]
fn active_lists_all_that_another_instance_needs() {
    let clock = Clock::manual(Timestamp::from_secs(NOW));
    let (here, there) = (RevocationList::new(clock.clone()), RevocationList::new(clock.clone()));
    let soon = Timestamp::from_secs(NOW + 60);
    here.revoke(named(RevocationTarget::Subject("alice".into())), None);
    here.revoke(named(RevocationTarget::GatewaySession("v".into())), None);
    here.revoke(named(RevocationTarget::Id("t1".into())), Some(soon));
    clock.advance(Duration::from_secs(60));

    let standing = here.active();
    assert_eq!(standing.len(), 2, "ended revocations are not listed: {standing:?}");
    for news in &standing {
        assert!(!there.contains(news));
        there.apply(news.clone());
        assert!(there.contains(news));
    }

    // A later time, or a longer one, is new.
    let later =
        |news: &RevocationEvent| RevocationEvent { until: news.until.plus_secs(1), ..news.clone() };
    assert!(standing.iter().all(|news| !there.contains(&later(news))));
    let sorted = |all: Vec<RevocationEvent>| {
        let mut all: Vec<_> = all.iter().map(|news| format!("{news:?}")).collect();
        all.sort();
        all
    };
    assert_eq!(sorted(there.active()), sorted(standing));
}

#[test]
fn revocations_of_sessions_are_stored_for_the_lifetime_of_a_session() {
    let clock = Clock::manual(Timestamp::from_secs(NOW));
    let revocations = RevocationList::new(clock.clone());
    let days = |days: u64| Duration::from_secs(days * 86_400);
    revocations.retain_at_least(Duration::from_secs(60));
    revocations.revoke(named(RevocationTarget::GatewaySession("short".into())), None);
    revocations.retain_at_least(days(30));
    revocations.revoke(named(RevocationTarget::Session("s1".into())), None);
    revocations.revoke(named(RevocationTarget::GatewaySession("long".into())), None);
    revocations.revoke(named(RevocationTarget::Id("t1".into())), None);

    clock.advance(days(1));
    assert_eq!(revocations.active().len(), 2);
    clock.advance(days(29));
    assert_eq!(revocations.active(), []);
}

#[tokio::test]
async fn a_revocation_of_an_uncached_token_is_stored_for_its_lifetime() {
    let bench = Bench::new().await;
    let days = |days: u64| Duration::from_secs(days * 86_400);
    let token = bench.token(json!({ "exp": NOW + days(7).as_secs() }));

    bench.revocations.revoke_token(&token, true);

    bench.clock.advance(days(7));
    assert_eq!(bench.revocations.active().len(), 2, "by both its names: clocks may differ");
    bench.clock.advance(days(1));
    assert_eq!(bench.revocations.active(), []);
}

#[test]
fn another_instance_with_a_fast_clock_ends_no_later_login() {
    let clock = Clock::manual(Timestamp::from_secs(NOW));
    let revocations = RevocationList::new(clock.clone());
    let ahead = Timestamp::from_secs(NOW + 600);
    let revocation = named(RevocationTarget::Subject("alice".into()));
    let news = RevocationEvent { revocation, at: ahead, until: Timestamp::MAX, learned: false };

    revocations.apply(news.clone());

    assert_eq!(revocations.active()[0].at, Timestamp::from_secs(NOW));
    assert!(revocations.contains(&news), "and it is no news a second time");
}

//! `DPoP` proofs: used at one instance, used at all (RFC 9449 §11.1).

use std::time::Duration;

use http::StatusCode;
use northgate::base::clock::Clock;
use northgate::dev::issuer::Mint;
use northgate::issuer::keys::signing_key::SigningKey;
use serde_json::json;

use super::super::gateway::Gateway;
use super::super::support::eventually;
use super::{Fleet, SEALED};
use crate::dpop::{signing_key, thumbprint, token_hash};

#[tokio::test]
async fn a_proof_accepted_by_one_instance_is_refused_by_all_others() {
    let Some(mut fleet) = Fleet::start("proofs", SEALED).await else { return };
    let key = signing_key();
    let cnf = json!({ "jkt": thumbprint(&key) });
    let mint = Mint::client("api").lifetime(Duration::from_secs(600)).claim("cnf", cnf);
    let token = fleet.issuer.mint(&mint).expect("a token");
    let (first, second) = (proof(&key, &token, "1"), proof(&key, &token, "2"));

    let statuses = [
        fleet.with_proof(0, &token, &first).await,
        fleet.with_proof(1, &token, &first).await,
        fleet.with_proof(1, &token, &second).await,
        fleet.with_proof(0, &token, &second).await,
    ];
    assert_eq!(statuses, [200, 401, 200, 401]);
    let marks: Vec<String> = fleet.redis.ask(&["KEYS", "northgate:proof:*"]);
    for mark in marks {
        let left: u64 = fleet.redis.ask(&["PTTL", &mark]);
        assert!(left > 120_000, "{left} ms: the other's clock may be behind");
    }

    // Whether another instance has accepted it is unknown: 503, since the client is not at fault.
    fleet.redis.stop();
    let alone = fleet.with_proof(0, &token, &proof(&key, &token, "3")).await;
    assert_eq!(alone, StatusCode::SERVICE_UNAVAILABLE);
    fleet.redis.start();
    let mut number = 4;
    eventually(Duration::from_secs(10), async || {
        number += 1;
        match fleet.with_proof(0, &token, &proof(&key, &token, &number.to_string())).await {
            StatusCode::OK => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn a_used_proof_stays_used_when_redis_loses_it() {
    let Some(mut fleet) = Fleet::start("lost proofs", SEALED).await else { return };
    let key = signing_key();
    let cnf = json!({ "jkt": thumbprint(&key) });
    let mint = Mint::client("api").lifetime(Duration::from_secs(600)).claim("cnf", cnf);
    let token = fleet.issuer.mint(&mint).expect("a token");
    let used: Vec<_> = (0..3).map(|id| proof(&key, &token, &format!("used {id}"))).collect();
    for proof in &used {
        assert_eq!(fleet.with_proof(0, &token, proof).await, StatusCode::OK);
    }
    let lives = life_of_marks(&fleet);
    assert_eq!(lives.len(), 3);
    // A republished proof expires when it would have.
    tokio::time::sleep(Duration::from_secs(2)).await;

    let _: String = fleet.redis.ask(&["FLUSHALL"]);
    are_marked(&fleet, 3).await;
    for left in life_of_marks(&fleet) {
        assert!((120_000..149_000).contains(&left), "{left} ms");
    }
    for proof in &used {
        assert_eq!(fleet.with_proof(1, &token, proof).await, StatusCode::UNAUTHORIZED);
    }

    // The same after a restart with an empty Redis.
    fleet.redis.stop();
    fleet.redis.start();
    are_marked(&fleet, 3).await;
    fleet.is_there_again().await;
    // Now the other instance has recorded them as well.
    fleet.gateways[1] = Gateway::start(&fleet.text).await;
    let mut number = 0;
    eventually(Duration::from_secs(10), async || {
        number += 1;
        match fleet.with_proof(1, &token, &proof(&key, &token, &format!("new {number}"))).await {
            StatusCode::OK => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
    for proof in &used {
        assert_eq!(fleet.with_proof(1, &token, proof).await, StatusCode::UNAUTHORIZED);
    }
}

/// Milliseconds until each used proof expires in Redis.
fn life_of_marks(fleet: &Fleet) -> Vec<u64> {
    let marks: Vec<String> = fleet.redis.ask(&["KEYS", "northgate:proof:*"]);
    marks.iter().map(|mark| fleet.redis.ask(&["PTTL", mark])).collect()
}

async fn are_marked(fleet: &Fleet, number: usize) {
    eventually(Duration::from_secs(5), async || match life_of_marks(fleet).len() {
        marked if marked == number => Ok(()),
        marked => Err(format!("{marked} are marked")),
    })
    .await;
}

impl Fleet {
    async fn with_proof(&self, gateway: usize, token: &str, proof: &str) -> StatusCode {
        let url = format!("{}/bound", self.gateways[gateway].url);
        // Clients use one host name for all instances.
        let request = self.http.get(url).header("host", "api.test").header("dpop", proof);
        let request = request.header("authorization", format!("DPoP {token}"));
        request.send().await.expect("an answer").status()
    }
}

fn proof(key: &SigningKey, token: &str, id: &str) -> String {
    let header = json!({ "typ": "dpop+jwt", "alg": "ES256", "jwk": key.public_jwk() });
    let claims = json!({
        "jti": id, "htm": "GET", "htu": "http://api.test/bound",
        "iat": Clock::system().now().as_secs(), "ath": token_hash(token),
    });
    key.sign_jwt(&header, &claims).expect("a signature")
}

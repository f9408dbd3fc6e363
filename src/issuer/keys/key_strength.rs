//! Strength checks: public keys that are well formed but weak.

use super::unusable_key::UnusableKey;

/// Refuses an RSA key (big-endian, no leading zeros) below 2048 or above 8192
/// bits, with an even or tiny exponent, or of the ROCA kind (CVE-2017-15361),
/// whose private key can be computed from the public one.
pub(in crate::issuer) fn check_rsa(n: &[u8], e: &[u8]) -> Result<(), UnusableKey> {
    let (Some(first), Some(last)) = (n.first(), n.last()) else {
        return Err(UnusableKey::Members);
    };
    let bits = n.len() * 8 - first.leading_zeros() as usize;
    let exponent = match e {
        [] => return Err(UnusableKey::Members),
        e if e.len() > 4 => return Err(UnusableKey::Members),
        e => e.iter().fold(0_u32, |number, byte| (number << 8) | u32::from(*byte)),
    };
    if last % 2 == 0 {
        return Err(UnusableKey::Members);
    }
    if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits)
        || exponent < 3
        || exponent % 2 == 0
        || is_roca(n)
    {
        return Err(UnusableKey::Weak);
    }
    Ok(())
}

/// Refuses Ed25519 keys of small order: a signature made for one message holds for many.
pub(in crate::issuer) fn check_ed25519(key: &[u8]) -> Result<(), UnusableKey> {
    let mut y = [0; 32];
    if key.len() != y.len() {
        return Err(UnusableKey::Members);
    }
    y.copy_from_slice(key);
    y[31] &= 0x7f; // The top bit is the sign of x.
    if SMALL_ORDER.contains(&y) { Err(UnusableKey::Weak) } else { Ok(()) }
}

/// Whether the modulus has the fingerprint of Infineon's generator: modulo
/// each of these primes it is a power of 65537. Another modulus does with a
/// probability of about 10⁻⁸.
fn is_roca(n: &[u8]) -> bool {
    ROCA_PRIMES.iter().all(|&prime| {
        let rest = n.iter().fold(0, |rest, byte| (rest * 256 + u32::from(*byte)) % prime);
        let mut power = 1;
        loop {
            if power == rest {
                return true;
            }
            power = power * (65_537 % prime) % prime;
            if power == 1 {
                return false;
            }
        }
    })
}

const MIN_RSA_BITS: usize = 2048;
const MAX_RSA_BITS: usize = 8192;

const ROCA_PRIMES: [u32; 38] = [
    3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97,
    101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
];

/// The y of the points whose order divides 8, canonical or not, little-endian.
const SMALL_ORDER: [[u8; 32]; 7] = [
    // 0
    [0; 32],
    // 1
    little(1),
    // the two of order 8
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98,
        0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53,
        0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67,
        0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac,
        0x03, 0x7a,
    ],
    // p - 1, p, p + 1
    near_p(0xec),
    near_p(0xed),
    near_p(0xee),
];

const fn little(first: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[0] = first;
    bytes
}

/// p is 2²⁵⁵ - 19.
const fn near_p(first: u8) -> [u8; 32] {
    let mut bytes = [0xff; 32];
    bytes[0] = first;
    bytes[31] = 0x7f;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_moduli_and_even_or_tiny_exponents_are_refused() {
        let odd = |bytes: usize| [vec![0xff; bytes - 1], vec![0xfb]].concat();

        assert_eq!(check_rsa(&odd(256), &[1, 0, 1]), Ok(()));
        assert_eq!(check_rsa(&odd(256), &[3]), Ok(()));
        assert_eq!(check_rsa(&odd(255), &[1, 0, 1]), Err(UnusableKey::Weak));
        assert_eq!(check_rsa(&odd(1025), &[1, 0, 1]), Err(UnusableKey::Weak));
        assert_eq!(check_rsa(&odd(256), &[1]), Err(UnusableKey::Weak));
        assert_eq!(check_rsa(&odd(256), &[2]), Err(UnusableKey::Weak));
        assert_eq!(check_rsa(&odd(256), &[]), Err(UnusableKey::Members));
        assert_eq!(check_rsa(&odd(256), &[1; 5]), Err(UnusableKey::Members));
        assert_eq!(check_rsa(&[0xfe; 256], &[1, 0, 1]), Err(UnusableKey::Members));
        assert_eq!(check_rsa(&[], &[1, 0, 1]), Err(UnusableKey::Members));
    }

    #[test]
    fn points_of_small_order_are_refused_with_either_sign() {
        for y in SMALL_ORDER {
            let mut other = y;
            other[31] |= 0x80;

            assert_eq!(check_ed25519(&y), Err(UnusableKey::Weak));
            assert_eq!(check_ed25519(&other), Err(UnusableKey::Weak));
        }
        assert_eq!(check_ed25519(&[9; 32]), Ok(()));
        assert_eq!(check_ed25519(&[9; 31]), Err(UnusableKey::Members));
    }
}

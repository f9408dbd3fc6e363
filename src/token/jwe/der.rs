//! PKCS#8 documents of RSA keys that come as JWKs or as PKCS#1: the library reads only those.

/// Returns the PKCS#8 document of an RSA private key (RFC 5208 §5), whose PKCS#1 structure is `pkcs1`.
pub(super) fn pkcs8_of_rsa(pkcs1: &[u8]) -> Vec<u8> {
    // rsaEncryption (1.2.840.113549.1.1.1), with the NULL that RFC 8017 §A.1 demands.
    const ALGORITHM: [u8; 15] =
        [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
    let version = value(INTEGER, &[0]);
    value(SEQUENCE, &[&version[..], &ALGORITHM, &value(OCTET_STRING, pkcs1)].concat())
}

/// Returns the PKCS#1 structure of an RSA private key (RFC 8017 §A.1.2) with these numbers: n, e, d, p, q, dp, dq, qi.
pub(super) fn pkcs1(numbers: &[Vec<u8>; 8]) -> Vec<u8> {
    let mut content = value(INTEGER, &[0]);
    for number in numbers {
        content.extend(integer(number));
    }
    value(SEQUENCE, &content)
}

/// An unsigned number: without needless zeros, and with one where it would be negative.
fn integer(number: &[u8]) -> Vec<u8> {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let number = &number[zeros..];
    let needs_zero = number.first().is_none_or(|first| *first >= 0x80);
    let sign: &[u8] = if needs_zero { &[0] } else { &[] };
    value(INTEGER, &[sign, number].concat())
}

fn value(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut encoded = vec![tag];
    if length < 0x80 {
        encoded.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        encoded.push(0x80 | (bytes.len() - zeros) as u8);
        encoded.extend_from_slice(&bytes[zeros..]);
    }
    encoded.extend_from_slice(content);
    encoded
}

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

//! Why a TLS handshake with an upstream failed, in the words of the log.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// Returns the cause of a failed handshake.
pub(super) fn cause(error: &io::Error) -> &'static str {
    use AlertDescription as Alert;
    use CertificateError as Bad;
    let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<Error>()) else {
        return "the connection was closed during the TLS handshake";
    };
    match error {
        Error::InvalidCertificate(bad) => match bad {
            Bad::UnknownIssuer => "the certificate has an unknown issuer",
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
                "the certificate is not for this name (name mismatch)"
            }
            Bad::Expired | Bad::ExpiredContext { .. } => "the certificate has expired",
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => "the certificate is not valid yet",
            _ => "the certificate is not valid",
        },
        Error::AlertReceived(
            Alert::BadCertificate
            | Alert::CertificateRequired
            | Alert::CertificateUnknown
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::UnsupportedCertificate
            | Alert::UnknownCA
            | Alert::AccessDenied,
        ) => "the upstream refuses the gateway's certificate",
        Error::AlertReceived(Alert::ProtocolVersion) | Error::PeerIncompatible(_) => {
            "no common TLS version or cipher suite"
        }
        Error::AlertReceived(_) => "the upstream refuses the TLS handshake",
        Error::InvalidMessage(_) => "the upstream does not speak TLS",
        _ => "the TLS handshake failed",
    }
}

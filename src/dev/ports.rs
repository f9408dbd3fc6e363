//! The ports of the development system, and the variables that hand them to the configuration file.

use std::net::{Ipv4Addr, SocketAddr};

/// The ports of the development system, all moved up by one offset.
///
/// `gateway.yaml` names them as variables with the port without offset as the default,
/// such as `${HTTP_PORT:-8080}`, so that it works without an offset anywhere.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Ports {
    offset: u16,
}

impl Ports {
    /// Moves all ports up by `offset`.
    ///
    /// # Errors
    ///
    /// [`OffsetTooLarge`] if a port would exceed 65535.
    pub const fn with_offset(offset: u16) -> Result<Self, OffsetTooLarge> {
        match HIGHEST_PORT.checked_add(offset) {
            Some(_) => Ok(Self { offset }),
            None => Err(OffsetTooLarge),
        }
    }

    /// The gateway in plain HTTP: 8080.
    pub const fn http(self) -> u16 {
        8080 + self.offset
    }

    /// The gateway with TLS: 8443.
    pub const fn https(self) -> u16 {
        8443 + self.offset
    }

    /// The gateway's admin listener: 9901.
    pub const fn admin(self) -> u16 {
        HIGHEST_PORT + self.offset
    }

    /// The development issuer: 9400.
    pub const fn issuer(self) -> u16 {
        9400 + self.offset
    }

    /// The two instances of `orders`: 9501 and 9502.
    pub const fn orders(self) -> [u16; 2] {
        [9501 + self.offset, 9502 + self.offset]
    }

    /// `shop`: 9511.
    pub const fn shop(self) -> u16 {
        9511 + self.offset
    }

    /// Returns the ports as variables for the configuration file.
    pub fn variables(self) -> Vec<(&'static str, String)> {
        let [first, second] = self.orders();
        let ports = [
            ("HTTP_PORT", self.http()),
            ("HTTPS_PORT", self.https()),
            ("ADMIN_PORT", self.admin()),
            ("ISSUER_PORT", self.issuer()),
            ("ORDERS_PORT", first),
            ("MORE_ORDERS_PORT", second),
            ("SHOP_PORT", self.shop()),
        ];
        ports.into_iter().map(|(name, port)| (name, port.to_string())).collect()
    }
}

/// Returns the IPv4 loopback address with `port`.
pub(super) fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// The offset moves a port beyond 65535.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the offset moves a port beyond 65535: use one up to {MAX_OFFSET}")]
pub struct OffsetTooLarge;

const HIGHEST_PORT: u16 = 9901;
const MAX_OFFSET: u16 = u16::MAX - HIGHEST_PORT;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_offset_moves_every_port() {
        let (usual, moved) = (Ports::default().variables(), Ports::with_offset(100));
        let moved = moved.expect("small enough").variables();

        let port = |text: &str| text.parse::<u16>().expect("a port");
        assert!(usual.iter().zip(&moved).all(|((_, a), (_, b))| port(a) + 100 == port(b)));
    }

    #[test]
    fn no_offset_moves_a_port_out_of_range() {
        assert!(Ports::with_offset(MAX_OFFSET).is_ok());
        assert_eq!(Ports::with_offset(MAX_OFFSET + 1), Err(OffsetTooLarge));
    }
}

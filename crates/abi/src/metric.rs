//! Metrics: numbers that a guest reports by name.
//!
//! A metric is the body of a record of the [outbox](crate::outbox): a 16-byte header, then the name.

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::function::{FunctionError, MAX_NAME_LEN_BYTES, check_name};

/// What a metric says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MetricValue {
    /// Something happened this many times more.
    Counter(u64),
    /// Something has this value now.
    Gauge(f64),
    /// One value of many, for a histogram.
    Sample(f64),
}

/// Start of a metric; the name follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct MetricHeader {
    /// 1 for a counter, 2 for a gauge, 3 for a sample.
    pub kind: u32,
    /// Length of the name, at most [`MAX_NAME_LEN_BYTES`].
    pub name_len_bytes: u32,
    /// The number: of a counter as it is, of the others the bits of a 64-bit floating-point number.
    pub bits: u64,
}

/// A metric, parsed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MetricRecord<'a> {
    /// Which one: 1 to 128 bytes of printable ASCII without space, like the name of a function.
    pub name: &'a str,
    /// What it says.
    pub value: MetricValue,
}

/// A metric that cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MetricError {
    /// Header and name need more bytes than there are.
    #[error("metric needs {need_bytes} bytes, the record holds {have_bytes}")]
    TooShort {
        /// What the metric claims.
        need_bytes: u64,
        /// Bytes at hand.
        have_bytes: usize,
    },
    /// The kind is none of [`MetricValue`].
    #[error("metric has unknown kind {0}")]
    UnknownKind(
        /// What was found.
        u32,
    ),
    /// The name breaks the rules of names.
    #[error("metric has an invalid name")]
    Name(#[from] FunctionError),
}

impl MetricHeader {
    /// Size of the structure.
    pub const LEN_BYTES: usize = 16;
}

const _: () = {
    assert!(size_of::<MetricHeader>() == MetricHeader::LEN_BYTES);
    assert!(core::mem::offset_of!(MetricHeader, bits) == 8);
};

impl MetricValue {
    const fn encode(self) -> (u32, u64) {
        match self {
            Self::Counter(value) => (1, value),
            Self::Gauge(value) => (2, value.to_bits()),
            Self::Sample(value) => (3, value.to_bits()),
        }
    }

    const fn decode(kind: u32, bits: u64) -> Option<Self> {
        Some(match kind {
            1 => Self::Counter(bits),
            2 => Self::Gauge(f64::from_bits(bits)),
            3 => Self::Sample(f64::from_bits(bits)),
            _ => return None,
        })
    }
}

impl<'a> MetricRecord<'a> {
    /// Parses the body of a record.
    ///
    /// # Errors
    /// Names what is wrong with it.
    pub fn parse(body: &'a [u8]) -> Result<Self, MetricError> {
        let too_short = |name_len_bytes: u32| MetricError::TooShort {
            need_bytes: MetricHeader::LEN_BYTES as u64 + u64::from(name_len_bytes),
            have_bytes: body.len(),
        };
        let (header, rest) = MetricHeader::read_from_prefix(body).map_err(|_| too_short(0))?;
        let value = MetricValue::decode(header.kind, header.bits)
            .ok_or(MetricError::UnknownKind(header.kind))?;
        let name = rest
            .get(..header.name_len_bytes as usize)
            .ok_or_else(|| too_short(header.name_len_bytes))?;
        Ok(Self {
            name: check_name(name)?,
            value,
        })
    }

    /// Writes the metric at the start of `body` and returns its length; `None` where it does not fit.
    ///
    /// # Errors
    /// The name breaks the rules of names.
    pub fn write(&self, body: &mut [u8]) -> Result<Option<usize>, MetricError> {
        check_name(self.name.as_bytes())?;
        let (kind, bits) = self.value.encode();
        let len_bytes = MetricHeader::LEN_BYTES + self.name.len();
        let Some((header, name)) = body
            .get_mut(..len_bytes)
            .map(|body| body.split_at_mut(MetricHeader::LEN_BYTES))
        else {
            return Ok(None);
        };
        // The check above bounds the name by a small number.
        let name_len_bytes = u32::try_from(self.name.len().min(MAX_NAME_LEN_BYTES)).unwrap_or(0);
        let fields = MetricHeader {
            kind,
            name_len_bytes,
            bits,
        };
        header.copy_from_slice(fields.as_bytes());
        name.copy_from_slice(self.name.as_bytes());
        Ok(Some(len_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_survives_its_bytes() {
        for value in [
            MetricValue::Counter(u64::MAX),
            MetricValue::Gauge(-0.5),
            MetricValue::Sample(1e300),
        ] {
            let metric = MetricRecord {
                name: "requests.total",
                value,
            };
            let mut body = [0xA5; 64];
            assert_eq!(metric.write(&mut body), Ok(Some(30)));
            assert_eq!(MetricRecord::parse(&body[..30]), Ok(metric));
            assert_eq!(metric.write(&mut body[..29]), Ok(None));
        }
    }

    #[test]
    fn each_defect_has_its_error() {
        let metric = |kind, name_len_bytes, name: &[u8]| {
            let header = MetricHeader {
                kind,
                name_len_bytes,
                bits: 0,
            };
            let mut body = [0; 64];
            body[..16].copy_from_slice(header.as_bytes());
            body[16..16 + name.len()].copy_from_slice(name);
            MetricRecord::parse(&body[..16 + name.len()]).map(|_| ())
        };
        let need = |need_bytes, have_bytes| {
            Err(MetricError::TooShort {
                need_bytes,
                have_bytes,
            })
        };
        assert_eq!(metric(1, 1, b"a"), Ok(()));
        assert_eq!(metric(0, 1, b"a"), Err(MetricError::UnknownKind(0)));
        assert_eq!(metric(1, 2, b"a"), need(18, 17));
        assert_eq!(
            metric(1, u32::MAX, b"a"),
            need(16 + u64::from(u32::MAX), 17)
        );
        for name in [&b""[..], b"a b", b"\xFF"] {
            let name_len_bytes = u32::try_from(name.len()).expect("short");
            assert!(matches!(
                metric(2, name_len_bytes, name),
                Err(MetricError::Name(_))
            ));
        }
        assert_eq!(
            MetricRecord::parse(&[0; 15]),
            Err(MetricError::TooShort {
                need_bytes: 16,
                have_bytes: 15
            })
        );
    }
}

//! Tells rules that iptables-nft wrote from rules that only `nft` can have written.
//!
//! `iptables-nft-save` silently omits the parts of a rule that it does not expect, and exits with
//! 0: a set lookup, a second test of the same field, or a field or operator for which iptables has
//! no match. A rule therefore counts as iptables' own only if all its parts have the form and order
//! in which iptables-nft 1.8.9 writes them, as `nft --debug=netlink` shows.

use std::ffi::CStr;

use netlink_bindings::nftables::{
    BitwiseOps, CmpOps, ExprOps, IterableExprAttrs, IterableExprImmediateAttrs,
    IterableExprMetaAttrs, IterableExprPayloadAttrs, IterableLogAttrs, IterableRuleAttrs, MetaKeys,
    PayloadBase, RangeOps, VerdictCode,
};
use netlink_bindings::utils::{find_attr, parse_be_u32, parse_be_u64};

use crate::state::Family;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Whether the rule has a part that iptables-nft never writes.
pub(super) fn is_native(family: Family, rule: IterableRuleAttrs<'_>) -> bool {
    let Ok(expressions) = rule.get_expressions() else { return false };
    let parts: Option<Vec<Part>> =
        expressions.get_elem().map(|expression| part(family, expression)).collect();
    !parts.is_some_and(|parts| written_by_iptables(&parts))
}

/// Whether the rule holds for every packet: it only counts, comments and acts.
pub(super) fn is_unconditional(rule: IterableRuleAttrs<'_>) -> bool {
    let Ok(expressions) = rule.get_expressions() else { return true };
    expressions.get_elem().all(|expression| match expression.get_name().map(CStr::to_bytes) {
        Ok(b"counter" | b"immediate" | b"target" | b"log") => true,
        Ok(b"match") => {
            let data = find_attr(expression.get_buf(), NFTA_EXPR_DATA);
            let name = data.and_then(|data| find_attr(data, NFTA_MATCH_NAME));
            name == Some(b"comment\0")
        }
        _ => false,
    })
}

/// A packet field that iptables-nft tests by nf_tables expressions, not by an xtables match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    InputInterface,
    OutputInterface,
    Protocol,
    Mark,
    Source { whole: bool },
    Destination { whole: bool },
    Fragment,
    SourcePort,
    DestinationPort,
    TcpFlags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Ordered,
}

/// One expression of a rule, reduced to what tells iptables-nft from `nft`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Load(Field),
    Mask(Vec<u8>),
    Compare(Operator, Vec<u8>),
    Range(Operator),
    /// A counter, an xtables match or a limit. It may be anywhere before the action.
    Free,
    /// What a rule ends with: a verdict, an xtables target, or NFLOG.
    Action,
    /// The value 1 that `-j TRACE` loads; [`Part::TraceSet`] writes it to `meta nftrace`.
    TraceValue,
    TraceSet,
}

/// Reduces an expression to a part; none if iptables-nft never writes such an expression.
fn part(family: Family, expression: IterableExprAttrs<'_>) -> Option<Part> {
    match expression.get_name().ok()?.to_bytes() {
        b"counter" | b"match" => return Some(Part::Free),
        b"target" => return Some(Part::Action),
        // netlink-bindings does not decode `limit` expressions.
        b"limit" => return limit(find_attr(expression.get_buf(), NFTA_EXPR_DATA)?),
        _ => {}
    }
    match expression.get_data().ok()? {
        ExprOps::Meta(meta) => meta_part(meta),
        ExprOps::Payload(payload) => payload_field(family, payload).map(Part::Load),
        ExprOps::Immediate(immediate) => immediate_part(immediate),
        ExprOps::Log(log) => nflog(log),
        ExprOps::Bitwise(bitwise) => {
            // Kernels before 5.6 do not report the operation, because they have only mask-and-xor.
            let and = bitwise.get_op().is_ok_and(|op| op != BitwiseOps::MaskXor as u32);
            let flips = bitwise.get_xor().ok()?.get_value().ok()?.iter().any(|byte| *byte != 0);
            let mask = bitwise.get_mask().ok()?.get_value().ok()?;
            (!and && !flips).then(|| Part::Mask(mask.to_vec()))
        }
        ExprOps::Cmp(cmp) => {
            let operator = match CmpOps::from_value(cmp.get_op().ok()?.into())? {
                CmpOps::Eq => Operator::Equal,
                CmpOps::Neq => Operator::NotEqual,
                CmpOps::Lt | CmpOps::Lte | CmpOps::Gt | CmpOps::Gte => Operator::Ordered,
            };
            Some(Part::Compare(operator, cmp.get_data().ok()?.get_value().ok()?.to_vec()))
        }
        ExprOps::Range(range) => Some(match RangeOps::from_value(range.get_op().ok()?.into())? {
            RangeOps::Eq => Part::Range(Operator::Equal),
            RangeOps::Neq => Part::Range(Operator::NotEqual),
        }),
        _ => None,
    }
}

fn meta_part(meta: IterableExprMetaAttrs<'_>) -> Option<Part> {
    let key = meta.get_key().ok()?;
    if meta.get_sreg().is_ok() {
        return (key == MetaKeys::Nftrace as u32).then_some(Part::TraceSet);
    }
    let field = match MetaKeys::from_value(key.into())? {
        MetaKeys::Iifname => Field::InputInterface,
        MetaKeys::Oifname => Field::OutputInterface,
        MetaKeys::L4Proto => Field::Protocol,
        MetaKeys::Mark => Field::Mark,
        _ => return None,
    };
    Some(Part::Load(field))
}

fn payload_field(family: Family, payload: IterableExprPayloadAttrs<'_>) -> Option<Field> {
    if payload.get_sreg().is_ok() {
        return None; // A write into the packet.
    }
    let base = PayloadBase::from_value(payload.get_base().ok()?.into())?;
    // For a prefix, iptables-nft loads only the bytes of the address that the prefix covers.
    Some(match (base, family, payload.get_offset().ok()?, payload.get_len().ok()?) {
        (PayloadBase::NetworkHeader, Family::Ipv4, 6, 2) => Field::Fragment,
        // The older form of `-p`, which 1.8.9 still reads. In an IPv6 header the same bytes would
        // be part of an address.
        (PayloadBase::NetworkHeader, Family::Ipv4, 9, 1) => Field::Protocol,
        (PayloadBase::NetworkHeader, Family::Ipv4, 12, n @ 1..=4) => {
            Field::Source { whole: n == 4 }
        }
        (PayloadBase::NetworkHeader, Family::Ipv4, 16, n @ 1..=4) => {
            Field::Destination { whole: n == 4 }
        }
        (PayloadBase::NetworkHeader, Family::Ipv6, 8, n @ 1..=16) => {
            Field::Source { whole: n == 16 }
        }
        (PayloadBase::NetworkHeader, Family::Ipv6, 24, n @ 1..=16) => {
            Field::Destination { whole: n == 16 }
        }
        (PayloadBase::TransportHeader, _, 0, 2) => Field::SourcePort,
        (PayloadBase::TransportHeader, _, 2, 2) => Field::DestinationPort,
        (PayloadBase::TransportHeader, _, 13, 1) => Field::TcpFlags,
        _ => return None,
    })
}

fn immediate_part(immediate: IterableExprImmediateAttrs<'_>) -> Option<Part> {
    let data = immediate.get_data().ok()?;
    if let Ok(verdict) = data.get_verdict() {
        return match VerdictCode::from_value(verdict.get_code().ok()?.into())? {
            VerdictCode::Accept
            | VerdictCode::Drop
            | VerdictCode::Return
            | VerdictCode::Jump
            | VerdictCode::Goto => Some(Part::Action),
            _ => None,
        };
    }
    // The value is a single byte, 1, which the kernel may pad with zeros.
    let (first, rest) = data.get_value().ok()?.split_first()?;
    (*first == 1 && rest.iter().all(|byte| *byte == 0)).then_some(Part::TraceValue)
}

/// The part for `-j NFLOG`. iptables-nft writes every other kind of logging as an xtables target.
fn nflog(log: IterableLogAttrs<'_>) -> Option<Part> {
    let fits = log.get_prefix().map_or(0, |prefix| prefix.to_bytes().len()) < 64;
    (log.get_group().is_ok() && log.get_level().is_err() && fits).then_some(Part::Action)
}

const NFTA_EXPR_DATA: u16 = 2;
const NFTA_MATCH_NAME: u16 = 1;
const NFTA_LIMIT_RATE: u16 = 1;
const NFTA_LIMIT_UNIT: u16 = 2;
const NFTA_LIMIT_TYPE: u16 = 4;
const NFTA_LIMIT_FLAGS: u16 = 5;

/// The part for `-m limit`, if xtables, which counts in 1/10,000 s, can express this packet rate.
fn limit(attributes: &[u8]) -> Option<Part> {
    let rate = parse_be_u64(find_attr(attributes, NFTA_LIMIT_RATE)?)?;
    let unit = parse_be_u64(find_attr(attributes, NFTA_LIMIT_UNIT)?)?;
    let number = |kind| find_attr(attributes, kind).and_then(parse_be_u32).unwrap_or(0);
    let packets = number(NFTA_LIMIT_TYPE) == 0;
    let over = number(NFTA_LIMIT_FLAGS) != 0;
    let span = [1, 60, 3600, 86400].contains(&unit).then_some(unit * 10_000)?;
    let interval = span.checked_div(rate)?;
    let exact = span.checked_div(interval)? == rate;
    (packets && !over && exact).then_some(Part::Free)
}

/// Whether iptables-nft writes these parts in this order.
fn written_by_iptables(parts: &[Part]) -> bool {
    let mut rest = parts;
    let mut earlier: Vec<Field> = Vec::new();
    let mut protocol = None;
    loop {
        rest = match rest {
            [] | [Part::Action] | [Part::TraceValue, Part::TraceSet] => return true,
            [Part::Free, rest @ ..] => rest,
            [Part::Load(field), after @ ..] => {
                // iptables-nft tests each field at most once, except the mark.
                if *field != Field::Mark && earlier.iter().any(|other| same(*other, *field)) {
                    return false;
                }
                earlier.push(*field);
                let Some((length, found)) = tested(*field, protocol, after) else { return false };
                protocol = found.or(protocol);
                &after[length..]
            }
            _ => return false,
        };
    }
}

/// Whether both are the same field, whatever the prefix of an address.
fn same(one: Field, other: Field) -> bool {
    std::mem::discriminant(&one) == std::mem::discriminant(&other)
}

/// How many parts after the load of `field` belong to its test, and the transport protocol that the
/// test requires, if any. None if iptables-nft does not write such a test for a rule whose
/// transport protocol is `protocol`.
fn tested(field: Field, protocol: Option<u8>, parts: &[Part]) -> Option<(usize, Option<u8>)> {
    use Operator::{Equal, NotEqual};
    use Part::{Compare, Mask, Range};
    let fits = |holds: bool, length: usize| holds.then_some((length, None));
    match (field, parts) {
        (Field::Protocol, [Compare(Equal, value), ..]) => Some((1, value.first().copied())),
        (Field::Protocol, [Compare(NotEqual, _), ..]) => Some((1, None)),
        (Field::InputInterface | Field::OutputInterface, [Compare(Equal | NotEqual, _), ..]) => {
            Some((1, None))
        }
        // `-i +` loads the name of the interface but compares it with nothing.
        (
            Field::InputInterface | Field::OutputInterface,
            [Mask(_) | Compare(..) | Range(_), ..],
        ) => None,
        (Field::InputInterface | Field::OutputInterface, _) => Some((0, None)),
        (Field::Mark | Field::Source { .. } | Field::Destination { .. }, [Compare(op, _), ..]) => {
            fits(matches!(op, Equal | NotEqual), 1)
        }
        (
            Field::Mark | Field::Source { whole: true } | Field::Destination { whole: true },
            [Mask(_), Compare(Equal | NotEqual, _), ..],
        ) => Some((2, None)),
        (Field::Fragment, [Mask(mask), Compare(Equal | NotEqual, value), ..]) => {
            fits(mask == &[0x1f, 0xff] && value == &[0, 0], 2)
        }
        (Field::SourcePort | Field::DestinationPort, [Compare(..) | Range(_), ..]) => {
            fits(matches!(protocol, Some(TCP | UDP)), 1)
        }
        (Field::TcpFlags, [Mask(_), Compare(Equal | NotEqual, _), ..]) => {
            fits(protocol == Some(TCP), 2)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Part = Part::Load(Field::Source { whole: true });

    fn equal(value: &[u8]) -> Part {
        Part::Compare(Operator::Equal, value.to_vec())
    }

    #[test]
    fn parts_that_nft_adds_are_found() {
        let address = [SOURCE, equal(&[1, 2, 3, 4])];
        let rule = |parts: &[Part]| written_by_iptables(&[&address, parts].concat());
        assert!(rule(&[]));
        assert!(rule(&[Part::Free, Part::Action]));
        // Two tests of the same field; the prefix makes no difference.
        assert!(!rule(&[Part::Load(Field::Source { whole: false }), equal(&[1, 2]), Part::Action]));
        // A part after the action, as in the rule `log group 3 accept`.
        assert!(!rule(&[Part::Action, Part::Action]));
        // Two comparisons of a field that is loaded once, as in `ip saddr 1.2.3.1-1.2.3.9`.
        assert!(!rule(&[equal(&[1, 2, 3, 9])]));
        // The value of `-j TRACE`, without the write.
        assert!(!rule(&[Part::TraceValue]));
        assert!(!rule(&[Part::TraceSet]));
        assert!(rule(&[Part::TraceValue, Part::TraceSet]));
        assert!(!rule(&[Part::Load(Field::Mark)]));
    }

    #[test]
    fn ports_need_tcp_or_udp_before_them() {
        let port = |protocol: u8| {
            let load = [Part::Load(Field::Protocol), equal(&[protocol])];
            let test = [Part::Load(Field::DestinationPort), equal(&[0, 80])];
            written_by_iptables(&[load, test].concat())
        };
        assert!(port(TCP) && port(UDP));
        assert!(!port(132)); // sctp is an xtables match
        assert!(!written_by_iptables(&[Part::Load(Field::DestinationPort), equal(&[0, 80])]));
    }

    #[test]
    fn any_interface_is_a_load_without_a_test() {
        let any = Part::Load(Field::InputInterface);
        assert!(written_by_iptables(&[any.clone(), Part::Free, Part::Action]));
        let after_e = Part::Compare(Operator::Ordered, b"e".to_vec());
        assert!(!written_by_iptables(&[any, after_e, Part::Action]));
    }
}

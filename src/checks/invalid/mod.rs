//! Packets that conntrack calls INVALID, and the rules that drop them.

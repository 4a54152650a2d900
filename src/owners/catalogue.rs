//! The catalogue of components, read from `playbooks/owners/*.yaml`.

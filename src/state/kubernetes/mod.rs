//! Objects of a cluster: the fields that are used of them, where the API server has them, and how they
//! are patched.

mod managers;
mod names;
mod objects;
mod patch;
mod path;
mod pod_of_process;
mod pod_update;
mod run_note;
mod selector_terms;

pub use managers::manager;
pub use names::{
    DAEMON_SET, LEASE, MANAGED_BY, MODE_LABEL, NAMESPACE, RUN_ANNOTATION, SELECTOR, name_for_mode,
};
pub use objects::{
    AnyObject, ClusterNode, ClusterPod, ConfigMapObject, DaemonSet, DaemonSetSpec, DaemonSetStatus,
    ManagedFields, ObjectMeta, OwnerReference, PodContainer, PodImages, PodPhase, PodSpec,
    PodStatus, PodVolume,
};
pub use patch::{JsonPatch, PatchOperation, pointer};
pub use path::{ApiKind, ObjectRef};
pub use pod_of_process::pod_of_process;
pub use pod_update::PodUpdate;
pub use run_note::{NoteState, RunNote};
pub use selector_terms::{
    SELECTOR_TERMS, is_of_mode, mode_of_terms, selector_terms, selects_nothing,
};

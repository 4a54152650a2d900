//! Tests of what is decided for clusters as kubeadm makes them.

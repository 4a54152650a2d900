//! The playbook fragments in docs/controllers.md: each is valid in a playbook.

use proxyshift::plan::playbook::{ControllerChoice, Playbook, StageName, StageOptions};
use proxyshift::state::kube_proxy::{Controller, Mode};

const DOCS: &str = include_str!("../../docs/controllers.md");
const PLAYBOOK: &str = include_str!("../../playbooks/iptables-to-ipvs.yaml");
const SWITCH: &str = "  - switch: {controller: auto, timeout: 2m}\n";

#[test]
fn every_recipe_is_a_stage_of_a_playbook() {
    let blocks: Vec<&str> =
        DOCS.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(blocks.len(), 3, "k3s, rke2, microk8s");
    assert!(PLAYBOOK.contains(SWITCH));
    for block in blocks {
        let text = PLAYBOOK.replace(SWITCH, &format!("  {block}"));
        let playbook = Playbook::parse("a recipe", &text, Mode::Iptables)
            .unwrap_or_else(|e| panic!("{e}\n{block}"));
        let Some(StageOptions::Switch(switch)) = playbook.stage(StageName::Switch) else {
            panic!("{block}")
        };
        let ControllerChoice::Named(Controller::Commands(commands)) = &switch.controller else {
            panic!("{block}")
        };
        assert_eq!(commands.stop.program(), commands.start.program(), "{block}");
    }
}

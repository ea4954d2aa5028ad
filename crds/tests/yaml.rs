//! The checked-in YAML matches the types and is small enough for `kubectl apply`.

use std::path::Path;

#[test]
fn the_checked_in_yaml_is_current() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("yaml");
    let definitions = covey_crds::all().unwrap();
    for definition in &definitions {
        let file = folder.join(covey_crds::file_name(definition));
        let found = std::fs::read_to_string(&file).unwrap_or_default();
        let wanted = covey_crds::to_yaml(definition).unwrap();
        assert!(found == wanted, "{} is stale: cargo run -p covey-crds --example generate", file.display());
    }
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), definitions.len(), "crds/yaml has an unexpected file");
}

#[test]
fn a_definition_fits_the_annotation_of_a_client_side_apply() {
    for definition in covey_crds::all().unwrap() {
        let size = serde_json::to_vec(&definition).unwrap().len();
        assert!(size < 256 * 1024, "{:?} has {size} bytes", definition.metadata.name);
    }
}

#[test]
fn an_empty_spec_is_the_default_spec() {
    let spec: covey_crds::MqttClusterSpec = serde_json::from_str("{}").unwrap();
    assert_eq!(spec, covey_crds::MqttClusterSpec::default());
    assert_eq!(spec.replicas, 3);
}

#[test]
fn every_default_is_in_the_schema() {
    for definition in covey_crds::all().unwrap() {
        let schema = serde_json::to_value(&definition).unwrap();
        let spec = schema.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec").unwrap();
        if definition.spec.names.kind == "MqttCluster" {
            for field in ["replicas", "image", "listeners", "sessions", "storage", "fence", "acl"] {
                assert!(spec.pointer(&format!("/properties/{field}/default")).is_some(), "{field} has no default");
            }
            assert_eq!(spec.pointer("/properties/sessions/properties/expiryMax/default").unwrap(), "168h");
        } else {
            assert_eq!(spec.pointer("/properties/authentication/default/password/generate").unwrap(), true);
        }
    }
}

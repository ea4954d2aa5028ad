//! Writes the CustomResourceDefinitions into `crds/yaml/`.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("yaml");
    std::fs::create_dir_all(&folder)?;
    for definition in covey_crds::all()? {
        std::fs::write(folder.join(covey_crds::file_name(&definition)), covey_crds::to_yaml(&definition)?)?;
    }
    Ok(())
}

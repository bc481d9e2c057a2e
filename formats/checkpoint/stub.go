package checkpoint

const adapterConfig = "adapter_config.json"

func (c *Checkpoint) merge(string) error { return unsupportedf("LoRA") }

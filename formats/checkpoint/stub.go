package checkpoint

const adapterConfig = "adapter_config.json"
const torchFile = "pytorch_model.bin"

func torchFiles(string) ([]string, bool, error)                   { return nil, false, nil }
func openTorch(string, []string) ([]*part, []func() error, error) { return nil, nil, nil }
func (c *Checkpoint) merge(string) error                          { return unsupportedf("LoRA") }

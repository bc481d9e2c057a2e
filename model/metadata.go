package model

// The metadata that llmq adds for products in eight bits; other readers ignore it.
const (
	// StaticLinearsKey names linears, StaticScalesKey gives, in the same order, the float32 scales of their inputs: the
	// value of code 1.
	StaticLinearsKey = "llmq.int8.linears"
	StaticScalesKey  = "llmq.int8.input_scales"
	// OutliersPrefix and a linear's name make the key of the outlier features of its input, uint32 column numbers.
	OutliersPrefix = "llmq.outliers."
)

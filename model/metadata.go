package model

// The metadata that llmq adds; other readers ignore it.
const (
	// MethodKey names the method that chose the linears' weights.
	MethodKey = "llmq.method"
	// ErrorsKey gives the relative error of each tensor, float32, in the order of the file.
	ErrorsKey = "llmq.relative_errors"

	// KLKey gives the mean KL divergence from the original, float32 in nats, that was measured on KLTokensKey tokens of text that
	// was not calibrated on, which KLTextKey describes.
	KLKey       = "llmq.kl_divergence"
	KLTokensKey = "llmq.kl_divergence.tokens"
	KLTextKey   = "llmq.kl_divergence.text"

	// StaticLinearsKey names linears, StaticScalesKey gives, in the same order, the float32 scales of their inputs: the
	// value of code 1.
	StaticLinearsKey = "llmq.int8.linears"
	StaticScalesKey  = "llmq.int8.input_scales"
	// OutliersPrefix and a linear's name make the key of the outlier features of its input, uint32 column numbers.
	OutliersPrefix = "llmq.outliers."
)

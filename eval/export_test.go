package eval

// SetHeadValues changes how many logits are held at once, until restore is called.
func SetHeadValues(n int) (restore func()) {
	old := headValues
	headValues = n
	return func() { headValues = old }
}

package eval

// SetHeadValues changes how many logits are held at once, until restore is called.
func SetHeadValues(n int) (restore func()) {
	old := headValues
	headValues = n
	return func() { headValues = old }
}

// SetHeadRows changes how many rows of the head are replaced at a time, until restore is called.
func SetHeadRows(n int) (restore func()) {
	old := headRows
	headRows = n
	return func() { headRows = old }
}

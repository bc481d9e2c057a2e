package eval

// SetHeadValues changes how many logits are held at once in a task, until restore is called.
func SetHeadValues(n int) (restore func()) {
	old := headValues
	headValues = n
	return func() { headValues = old }
}

// SetHeadColumns changes how many logits of a prediction exist at a time, until restore is called.
func SetHeadColumns(n int) (restore func()) {
	old := headColumns
	headColumns = n
	return func() { headColumns = old }
}

// SetHeadRows changes how many rows of the head are replaced at a time, until restore is called.
func SetHeadRows(n int) (restore func()) {
	old := headRows
	headRows = n
	return func() { headRows = old }
}

package calib

// SetFileLimits changes what counts as a long file, and the pieces that are read of one, until the function that it
// returns is called.
func SetFileLimits(file, piece int64) (restore func()) {
	oldFile, oldPiece := maxFileBytes, pieceBytes
	maxFileBytes, pieceBytes = file, piece
	return func() { maxFileBytes, pieceBytes = oldFile, oldPiece }
}

// Render exposes render, of messages alone.
func (c *ChatTemplate) Render(messages string) (string, error) {
	return c.render([]byte(messages), nil)
}

// Documents returns the texts of a file.
func Documents(path string, chat *ChatTemplate) ([]string, error) {
	strata, err := readStrata(path, chat)
	var texts []string
	for _, s := range strata {
		for _, d := range s.docs {
			texts = append(texts, d.text)
		}
	}
	return texts, err
}

package jinja

// Statements.
type (
	stmt interface{}

	textStmt   struct{ text string }
	outputStmt struct {
		line int
		x    expr
	}
	ifStmt struct {
		line   int
		tests  []expr
		bodies [][]stmt
		orelse []stmt
	}
	forStmt struct {
		line         int
		target, iter expr
		test         expr // or nil
		recursive    bool
		body, orelse []stmt
	}
	setStmt struct {
		line   int
		target expr
		x      expr
	}
	setBlockStmt struct {
		line   int
		target expr
		filter *filterExpr // whose innermost input is the block; or nil
		body   []stmt
	}
	withStmt struct {
		line    int
		targets []expr
		values  []expr
		body    []stmt
	}
	macroStmt struct {
		line int
		macroDef
	}
	callStmt struct {
		line   int
		call   *callExpr
		caller macroDef
	}
	filterStmt struct {
		line   int
		filter *filterExpr
		body   []stmt
	}
	generationStmt struct{ body []stmt }
	jumpStmt       struct{ err error }
)

// macroDef is what a macro, or the body of a call block, is made of.
type macroDef struct {
	name     string
	params   []string
	defaults []expr // of the last parameters
	body     []stmt
	caller   bool // the body uses caller, varargs, kwargs
	varargs  bool
	kwargs   bool
}

// Expressions.
type (
	expr interface{}

	constExpr struct{ v any }
	nameExpr  struct{ name string }
	nsExpr    struct {
		line       int
		name, attr string
	}
	tupleExpr struct{ items []expr }
	listExpr  struct{ items []expr }
	dictExpr  struct{ keys, values []expr }
	attrExpr  struct {
		line int
		x    expr
		name string
	}
	itemExpr struct {
		line   int
		x, key expr
	}
	sliceExpr struct {
		line                 int
		x, start, stop, step expr
	}
	callArgs struct {
		args           []expr
		names          []string
		values         []expr
		dynArgs, dynKw expr
	}
	callExpr struct {
		line int
		x    expr
		callArgs
	}
	filterExpr struct {
		line int
		x    expr // nil: the block's text
		name string
		callArgs
	}
	testExpr struct {
		line int
		x    expr
		name string
		callArgs
	}
	unaryExpr struct {
		line int
		op   string
		x    expr
	}
	binaryExpr struct {
		line int
		op   string
		l, r expr
	}
	concatExpr struct {
		line  int
		items []expr
	}
	compareExpr struct {
		line int
		x    expr
		ops  []string
		rs   []expr
	}
	condExpr struct {
		line               int
		test, then, orelse expr
	}
)

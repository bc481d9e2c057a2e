package main
func i8AMX(g *gen) {}

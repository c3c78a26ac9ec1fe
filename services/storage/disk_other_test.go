//go:build !linux

package storage

func runAsNode() bool { return false }

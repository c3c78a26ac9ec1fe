//go:build !linux

package store

import "os"

// adviseWillNeed is for Linux only; elsewhere the kernel reads ahead as it likes.
func adviseWillNeed(uintptr, int) {}

func populate(uintptr, int) error { return nil }

func readFirstPages(string) error { return nil }

func adviseReadahead(*os.File, bool) {}

// releaseMapped is for Linux only.
func releaseMapped([]string) {}

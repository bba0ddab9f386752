"""`shears compress`: a package that meets a bound on size or speed, chosen by measuring."""

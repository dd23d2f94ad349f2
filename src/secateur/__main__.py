from secateur.cli import main

main()

"""Where the process begins: signals and streams first, since what is imported after that takes its time."""

from secateur.cli.stopping import listen, open_streams


def main() -> None:
    open_streams()
    listen()
    from secateur.cli.app import main as run

    run()


if __name__ == "__main__":
    main()

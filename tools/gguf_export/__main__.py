from tools.gguf_export import main

main()

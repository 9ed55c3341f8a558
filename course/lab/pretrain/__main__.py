from course.lab.pretrain import main

main()
